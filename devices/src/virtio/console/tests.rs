//! The device with a driver in front of it, and host and terminal behind it.

use std::io::ErrorKind;
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::*;
use crate::console::{ConsoleReader, ReaderConfig, WhenFull};
use crate::virtio::testing::{Completion, TestDriver};

const MULTIPORT: u64 = 1 << 1;
const AGENT: &str = "org.qemu.guest_agent.0";

struct Fixture {
    device: VirtioConsole,
    control: ConsoleControl,
    ports: Vec<ConsolePort>,
    terminal: Terminal,
    driver: TestDriver,
}

fn fixture() -> Fixture {
    let io = EventLoop::spawn("test-io", Box::new(|| Ok(()))).unwrap();
    let terminal = Terminal::new();
    let config = ConsoleConfig {
        terminal: Some(terminal.clone()),
        ports: vec![AGENT.try_into().unwrap(), "other".try_into().unwrap()],
    };
    let (device, control, ports) = VirtioConsole::new(config, io).unwrap();
    let driver = TestDriver::new(8 << 20, &[QUEUE_SIZE; 8]);
    Fixture {
        device,
        control,
        ports,
        terminal,
        driver,
    }
}

fn message(id: u32, event: u16, value: u16) -> Vec<u8> {
    let id = id.to_le_bytes();
    let words = [event, value].map(u16::to_le_bytes);
    [id.as_slice(), words.as_flattened()].concat()
}

impl Fixture {
    /// A driver as Linux's: buffers in all receive queues, then "ready".
    fn started() -> Self {
        let mut fixture = fixture();
        fixture.driver.start(&mut fixture.device, MULTIPORT);
        for queue in [0, 2, 4, 6] {
            for _ in 0..8 {
                fixture.driver.request(queue, b"", 4096);
            }
        }
        fixture.tell(message(0, 0, 1));
        for id in 0..3 {
            assert_eq!(fixture.told(), message(id, 1, 1), "there is port {id}");
        }
        fixture
    }

    fn tell(&mut self, message: Vec<u8>) {
        self.driver.request(3, &message, 0);
        self.driver.complete(3);
    }

    fn told(&mut self) -> Vec<u8> {
        self.receive(2)
    }

    /// What came on a receive queue, whose buffer goes back.
    fn receive(&mut self, queue: usize) -> Vec<u8> {
        let Completion { len, writable, .. } = self.driver.complete(queue);
        self.driver.request(queue, b"", 4096);
        writable[..usize::try_from(len).unwrap()].to_vec()
    }

    fn open(&mut self, id: u32) {
        self.tell(message(id, 6, 1));
        let port = &self.ports[usize::try_from(id).unwrap() - 1];
        wait_for(|| port.is_open().then_some(()));
    }

    fn reader(&self, capacity: usize) -> ConsoleReader {
        self.terminal.reader(ReaderConfig {
            capacity,
            when_full: WhenFull::Hold,
        })
    }
}

fn wait_for<T>(mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "it never came");
        thread::sleep(Duration::from_millis(1));
    }
}

fn read(port: &ConsolePort) -> io::Result<Vec<u8>> {
    let mut cx = Context::from_waker(Waker::noop());
    let mut bytes = vec![0; 1 << 20];
    wait_for(|| match port.poll_read(&mut cx, &mut bytes) {
        Poll::Ready(read) => Some(read.map(|count| bytes[..count].to_vec())),
        Poll::Pending => None,
    })
}

fn write(port: &ConsolePort, data: &[u8]) -> io::Result<usize> {
    let mut cx = Context::from_waker(Waker::noop());
    wait_for(|| match port.poll_write(&mut cx, data) {
        Poll::Ready(written) => Some(written),
        Poll::Pending => None,
    })
}

#[test]
fn names_and_numbers_of_ports_are_bounded() {
    for name in ["", "a b", "../x", &"x".repeat(65)] {
        assert!(PortName::try_from(name).is_err(), "{name:?}");
    }
    let io = EventLoop::spawn("test-io", Box::new(|| Ok(()))).unwrap();
    let ports = |names: &[&str]| ConsoleConfig {
        terminal: None,
        ports: names.iter().map(|&name| name.try_into().unwrap()).collect(),
    };
    let twice = VirtioConsole::new(ports(&["a", "b", "a"]), io.clone());
    assert!(matches!(twice, Err(ConsoleError::Twice(name)) if name == "a"));
    let names: Vec<String> = (0..9).map(|number| number.to_string()).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    assert!(matches!(
        VirtioConsole::new(ports(&names), io),
        Err(ConsoleError::TooMany(9))
    ));
}

#[test]
fn the_configuration_has_size_and_number_of_ports() {
    let fixture = fixture();
    fixture.control.resize(132, 43);
    let mut config = [0xff; 12];
    fixture.device.read_config(0, &mut config);
    assert_eq!(config, [132, 0, 43, 0, 3, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(fixture.device.queue_max_sizes().len(), 8);
}

#[test]
fn a_driver_is_told_of_the_console_its_size_and_each_ports_name() {
    let mut fixture = Fixture::started();
    fixture.control.resize(80, 24);
    fixture.tell(message(0, 3, 1));
    assert_eq!(fixture.told(), message(0, 4, 1), "it is a console");
    assert_eq!(fixture.told(), message(0, 6, 1), "it is open");
    let resize = |size| [message(0, 5, 0), size].concat();
    assert_eq!(fixture.told(), resize(vec![80, 0, 24, 0]));
    fixture.control.resize(100, 30);
    assert_eq!(fixture.told(), resize(vec![100, 0, 30, 0]));
    fixture.tell(message(1, 3, 1));
    assert_eq!(
        fixture.told(),
        [message(1, 7, 1), AGENT.as_bytes().to_vec()].concat()
    );
    assert_eq!(fixture.told(), message(1, 6, 1));
    // What makes no sense is given back and does nothing.
    for wrong in [
        message(9, 3, 1),
        message(9, 6, 1),
        message(0, 99, 1),
        vec![1],
    ] {
        fixture.tell(wrong);
    }
    assert!(fixture.driver.try_complete(2).is_none());
}

#[test]
fn the_console_works_both_ways_also_for_a_driver_that_knows_one_port() {
    for features in [0, MULTIPORT] {
        let mut fixture = fixture();
        let reader = fixture.reader(100);
        let _ = fixture.terminal.input(b"typed before");
        fixture.driver.start(&mut fixture.device, features);
        fixture.driver.request(0, b"", 4096);
        assert_eq!(fixture.receive(0), b"typed before");
        fixture.driver.request(1, b"login: ", 0);
        fixture.driver.complete(1);
        let mut bytes = [0; 16];
        let count = reader.try_read(&mut bytes);
        assert_eq!(&bytes[..count], b"login: ");
        let _ = fixture.terminal.input(b"root\r");
        assert_eq!(fixture.receive(0), b"root\r");
    }
}

#[test]
fn output_waits_for_a_slow_reader_and_nothing_is_lost_or_doubled() {
    let mut fixture = Fixture::started();
    let reader = fixture.reader(100);
    let text: Vec<u8> = (0..30_000_u32).map(|n| n.to_le_bytes()[0]).collect();
    for part in text.chunks(10_000) {
        fixture.driver.request(1, part, 0);
    }
    thread::sleep(Duration::from_millis(20));
    assert!(
        fixture.driver.try_complete(1).is_none(),
        "still being taken"
    );
    let mut got = Vec::<u8>::new();
    while got.len() < text.len() {
        let mut bytes = [0; 64];
        let count = wait_for(|| match reader.try_read(&mut bytes) {
            0 => None,
            count => Some(count),
        });
        got.extend(&bytes[..count]);
    }
    assert_eq!(got, text);
    (0..3).for_each(|_| drop(fixture.driver.complete(1)));
}

#[test]
fn a_pause_in_the_middle_of_a_request_doubles_nothing() {
    let mut fixture = Fixture::started();
    let reader = fixture.reader(10);
    fixture.driver.request(1, b"0123456789abcdef", 0);
    let mut got = Vec::new();
    let read = |got: &mut Vec<u8>| {
        let mut bytes = [0; 4];
        let count = wait_for(|| match reader.try_read(&mut bytes) {
            0 => None,
            count => Some(count),
        });
        got.extend(&bytes[..count]);
    };
    read(&mut got);
    let queues = fixture.device.deactivate();
    let state = fixture.device.save();
    fixture.device.restore(&state).unwrap();
    let activation = Activation {
        queues,
        ..fixture.driver.activation(MULTIPORT)
    };
    fixture.device.activate(activation).unwrap();
    while got.len() < 16 {
        read(&mut got);
    }
    assert_eq!(got, b"0123456789abcdef");
}

#[test]
fn a_port_is_a_stream_while_a_program_has_it_open() {
    let mut fixture = Fixture::started();
    assert_eq!(fixture.ports[0].name(), AGENT);
    let refused = write(&fixture.ports[0], b"x").unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::NotConnected);
    let refused = read(&fixture.ports[0]).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::NotConnected);
    fixture.open(1);
    assert_eq!(write(&fixture.ports[0], b"ping").unwrap(), 4);
    assert_eq!(fixture.receive(4), b"ping");
    fixture.driver.request(5, b"pong", 0);
    assert_eq!(read(&fixture.ports[0]).unwrap(), b"pong");
    assert!(!fixture.ports[1].is_open());
    // The last words of a program are heard after it closed the port.
    fixture.driver.request(5, b"bye", 0);
    fixture.driver.complete(5);
    fixture.driver.complete(5);
    fixture.tell(message(1, 6, 0));
    let port = &fixture.ports[0];
    wait_for(|| (!port.is_open()).then_some(()));
    assert_eq!(read(port).unwrap(), b"bye");
    assert_eq!(read(port).unwrap_err().kind(), ErrorKind::NotConnected);
}

#[test]
fn both_directions_of_a_port_are_bounded() {
    let mut fixture = Fixture::started();
    fixture.open(2);
    let data = vec![7; PORT_BUFFER_LEN];
    for _ in 0..3 {
        fixture.driver.request(7, &data, 0);
    }
    let total = 3 * PORT_BUFFER_LEN;
    let mut got = 0;
    while got < total {
        let part = read(&fixture.ports[1]).unwrap().len();
        assert!(part <= PORT_BUFFER_LEN);
        got += part;
    }
    assert_eq!(got, total);
    // The driver has buffers for eight pages.
    let mut cx = Context::from_waker(Waker::noop());
    let mut written = 0;
    let give_up = Instant::now() + Duration::from_millis(200);
    while Instant::now() < give_up {
        if let Poll::Ready(count) = fixture.ports[1].poll_write(&mut cx, &data) {
            written += count.unwrap();
        }
    }
    assert_eq!(written, PORT_BUFFER_LEN + 8 * 4096);
}

#[test]
fn a_reset_closes_the_ports_and_the_next_driver_opens_them() {
    let mut fixture = Fixture::started();
    fixture.open(1);
    write(&fixture.ports[0], b"for the driver before").unwrap();
    fixture.device.deactivate();
    fixture.device.reset(Reset::Driver);
    assert!(!fixture.ports[0].is_open());
    fixture.driver = TestDriver::new(8 << 20, &[QUEUE_SIZE; 8]);
    fixture.driver.start(&mut fixture.device, MULTIPORT);
    for queue in [2, 4] {
        for _ in 0..8 {
            fixture.driver.request(queue, b"", 4096);
        }
    }
    fixture.tell(message(0, 0, 1));
    assert_eq!(fixture.told(), message(0, 1, 1));
    fixture.open(1);
    write(&fixture.ports[0], b"new").unwrap();
    assert_eq!(fixture.receive(4), b"new");
    let Fixture { device, ports, .. } = fixture;
    drop(device);
    assert_eq!(read(&ports[0]).unwrap_err().kind(), ErrorKind::BrokenPipe);
    let mut cx = Context::from_waker(Waker::noop());
    assert!(matches!(ports[0].poll_open(&mut cx), Poll::Ready(Err(_))));
}

#[test]
fn a_driver_that_floods_messages_waits_for_its_answers() {
    let mut fixture = fixture();
    fixture.driver.start(&mut fixture.device, MULTIPORT);
    for _ in 0..31 {
        fixture.driver.request(3, &message(0, 0, 1), 0);
    }
    thread::sleep(Duration::from_millis(50));
    let taken = std::iter::from_fn(|| fixture.driver.try_complete(3)).count();
    assert!((1..31).contains(&taken), "{taken} taken");
    for _ in 0..93 {
        fixture.driver.request(2, b"", 64);
        assert_eq!(fixture.driver.complete(2).len, 8);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn no_message_panics(messages in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..12), 0..32)) {
        let mut fixture = Fixture::started();
        for message in messages {
            if message.is_empty() {
                fixture.control.resize(1, 1);
            } else {
                fixture.driver.request(3, &message, 0);
            }
        }
        fixture.driver.request(1, b"alive", 0);
        fixture.driver.complete(1);
        prop_assert!(fixture.terminal.log().tail().ends_with(b"alive"));
    }
}
