//! Interrupts of queues that somebody else serves: event files that follow the driver's choice
//! of vectors and the masks of the table.

use std::io;
use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

use crate::interrupt::{MsiMessage, MsiRoute, MsiSink};

/// One route a queue; none for devices that serve their queues themselves.
#[derive(Default)]
pub struct QueueRoutes {
    routes: Vec<QueueRoute>,
    refused: u64,
}

struct QueueRoute {
    route: Box<dyn MsiRoute>,
    message: Option<MsiMessage>,
}

impl QueueRoutes {
    /// Routes for `queues` queues, which lead nowhere yet.
    ///
    /// # Errors
    /// What `sink` answers.
    pub fn new(queues: u16, sink: &dyn MsiSink) -> io::Result<Self> {
        let route = |_| {
            sink.route().map(|route| QueueRoute {
                route,
                message: None,
            })
        };
        Ok(Self {
            routes: (0..queues).map(route).collect::<io::Result<_>>()?,
            refused: 0,
        })
    }

    /// The event file of a queue.
    pub fn event(&self, queue: u16) -> Option<Arc<EventFd>> {
        let route = self.routes.get(usize::from(queue))?;
        Some(Arc::clone(route.route.event()))
    }

    /// Lets every queue lead to what `message_of` says. What was lost while a queue led nowhere
    /// is made up for by one interrupt: drivers look at their rings and find nothing at worst.
    pub fn follow(&mut self, message_of: impl Fn(u16) -> Option<MsiMessage>) {
        for (queue, route) in (0..).zip(&mut self.routes) {
            let message = message_of(queue);
            if route.message == message {
                continue;
            }
            route.message = message;
            if route.route.set(message).is_err() {
                self.refused += 1;
            } else if message.is_some() {
                // Fails only when the counter is full, and then the interrupt is on its way.
                let _ = route.route.event().write(1);
            }
        }
    }

    /// How many messages the hypervisor refused so far.
    pub fn refused(&self) -> u64 {
        self.refused
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// Keeps the messages of all its routes.
    #[derive(Default)]
    struct Routes(Arc<Mutex<Vec<Option<MsiMessage>>>>);

    struct Route {
        number: usize,
        event: Arc<EventFd>,
        messages: Arc<Mutex<Vec<Option<MsiMessage>>>>,
    }

    impl MsiSink for Routes {
        fn signal(&self, _: MsiMessage) -> io::Result<()> {
            Ok(())
        }
        fn route(&self) -> io::Result<Box<dyn MsiRoute>> {
            let mut messages = self.0.lock().unwrap();
            messages.push(None);
            Ok(Box::new(Route {
                number: messages.len() - 1,
                event: Arc::new(EventFd::new(libc::EFD_NONBLOCK)?),
                messages: Arc::clone(&self.0),
            }))
        }
    }

    impl MsiRoute for Route {
        fn event(&self) -> &Arc<EventFd> {
            &self.event
        }
        fn set(&self, message: Option<MsiMessage>) -> io::Result<()> {
            if message.is_some_and(|message| message.address == 0) {
                return Err(io::ErrorKind::InvalidInput.into());
            }
            self.messages.lock().unwrap()[self.number] = message;
            Ok(())
        }
    }

    fn message(data: u32) -> Option<MsiMessage> {
        let address = 0xfee0_0000;
        Some(MsiMessage { address, data })
    }

    #[test]
    fn a_queue_that_leads_somewhere_again_is_interrupted_once() {
        let sink = Routes::default();
        let mut routes = QueueRoutes::new(2, &sink).unwrap();
        let event = routes.event(1).unwrap();
        let follow = |routes: &mut QueueRoutes, last| {
            routes.follow(|queue| if queue == 1 { last } else { None });
        };
        follow(&mut routes, message(7));
        follow(&mut routes, message(7));
        assert_eq!(event.read().unwrap(), 1);
        assert_eq!(*sink.0.lock().unwrap(), [None, message(7)]);
        follow(&mut routes, None);
        assert!(event.read().is_err());
        follow(&mut routes, message(8));
        assert_eq!(event.read().unwrap(), 1);
        assert_eq!(*sink.0.lock().unwrap(), [None, message(8)]);
    }

    #[test]
    fn a_refused_message_is_counted() {
        let mut routes = QueueRoutes::new(1, &Routes::default()).unwrap();
        routes.follow(|_| Some(MsiMessage::default()));
        assert_eq!(routes.refused(), 1);
        assert!(routes.event(0).unwrap().read().is_err());
        assert!(routes.event(1).is_none());
    }
}
