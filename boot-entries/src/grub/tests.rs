use proptest::prelude::*;

use super::*;
use crate::testing::MemoryTree;

const PATH: &str = "/boot/grub/grub.cfg";

/// What grub-mkconfig of Debian writes, shortened.
const DEBIAN: &str = r#"
if [ -s $prefix/grubenv ]; then
  set have_grubenv=true
  load_env
fi
if [ "${next_entry}" ] ; then
   set default="${next_entry}"
   set next_entry=
   save_env next_entry
   set boot_once=true
else
   set default="${saved_entry}"
fi
if [ x"${feature_menuentry_id}" = xy ]; then
  menuentry_id_option="--id"
else
  menuentry_id_option=""
fi
export menuentry_id_option
function savedefault {
  if [ -z "${boot_once}" ]; then
    saved_entry="${chosen}"
    save_env saved_entry
  fi
}
function load_video {
  if [ x$feature_all_video_module = xy ]; then
    insmod all_video
  else
    insmod efi_gop
  fi
}
if loadfont unicode ; then
  set gfxmode=auto
fi
terminal_output gfxterm
menuentry 'Debian GNU/Linux' --class debian --class os $menuentry_id_option 'gnulinux-simple-A' {
	load_video
	insmod gzio
	if [ x$grub_platform = xxen ]; then insmod xzio; insmod lzopio; fi
	search --no-floppy --fs-uuid --set=root A
	echo	'Loading Linux 6.12 ...'
	linux	/boot/vmlinuz-6.12 root=UUID=A ro  quiet
	echo	'Loading initial ramdisk ...'
	initrd	/boot/initrd.img-6.12
}
submenu 'Advanced options for Debian GNU/Linux' $menuentry_id_option 'gnulinux-advanced-A' {
	menuentry 'Debian, with Linux 6.12' --class debian $menuentry_id_option 'gnulinux-6.12-advanced-A' {
		search --no-floppy --fs-uuid --set=root A
		linux	/boot/vmlinuz-6.12 root=UUID=A ro
		initrd	/boot/initrd.img-6.12
	}
	menuentry 'Debian, with Linux 6.1 (recovery)' $menuentry_id_option 'gnulinux-6.1-recovery-A' {
		linux	/boot/vmlinuz-6.1 root=UUID=A ro single
		initrd	/boot/initrd.img-6.1
	}
}
menuentry 'UEFI Firmware Settings' $menuentry_id_option 'uefi-firmware' {
	fwsetup
}
if [ -f  ${config_directory}/custom.cfg ]; then
  source ${config_directory}/custom.cfg
elif [ -z "${config_directory}" -a -f  $prefix/custom.cfg ]; then
  source $prefix/custom.cfg
fi
"#;

const KERNELS: &[&str] = &[
    "/boot/vmlinuz-6.12",
    "/boot/initrd.img-6.12",
    "/boot/vmlinuz-6.1",
    "/boot/initrd.img-6.1",
];

fn volume_with(files: &[(&str, &str)]) -> Volume {
    let mut all: Vec<(&str, &str)> = KERNELS.iter().map(|path| (*path, "")).collect();
    all.extend(files);
    let mut volume = MemoryTree::new(&all).into_volume("vda1", "A");
    volume.grub_names = vec!["hd0,gpt1".to_owned(), "hd0,1".to_owned()];
    volume
}

fn run(files: &[(&str, &str)]) -> Result<GrubMenu, GrubError> {
    menu(&[volume_with(files)], 0, PATH)
}

fn first(script: &str) -> Entry {
    run(&[(PATH, script)]).unwrap().entries.remove(0)
}

fn args(script: &str) -> String {
    first(script).args
}

#[test]
fn a_configuration_of_debian_has_its_entries_with_the_default_first() {
    let menu = run(&[(PATH, DEBIAN)]).unwrap();
    let ids: Vec<&str> = menu.entries.iter().map(|entry| &*entry.id).collect();
    let expected = [
        "gnulinux-simple-A",
        "gnulinux-6.12-advanced-A",
        "gnulinux-6.1-recovery-A",
    ];
    assert_eq!(ids, expected);
    let entry = &menu.entries[0];
    assert_eq!(entry.title, "Debian GNU/Linux");
    assert_eq!(entry.kernel.path, "/boot/vmlinuz-6.12");
    assert_eq!(entry.initrds[0].path, "/boot/initrd.img-6.12");
    assert_eq!(entry.args, "root=UUID=A ro quiet");
    let expected = "entry \"UEFI Firmware Settings\" runs fwsetup";
    assert_eq!(menu.unusable, [expected]);
}

#[test]
fn the_saved_entry_is_the_default_by_id_title_number_or_path() {
    for saved in [
        "gnulinux-advanced-A>gnulinux-6.1-recovery-A",
        "Advanced options for Debian GNU/Linux>Debian, with Linux 6.1 (recovery)",
        "1>1",
        "gnulinux-6.1-recovery-A",
    ] {
        let env = format!("# GRUB Environment Block\nsaved_entry={saved}\n######");
        let files = [(PATH, DEBIAN), ("/boot/grub/grubenv", env.as_str())];
        let menu = run(&files).unwrap();
        assert_eq!(menu.entries[0].id, "gnulinux-6.1-recovery-A", "{saved}");
        assert_eq!(menu.entries.len(), 3);
    }
}

#[test]
fn a_submenu_as_default_means_its_first_entry() {
    let script = format!("{DEBIAN}\nset default=1\n");
    assert_eq!(first(&script).id, "gnulinux-6.12-advanced-A");
}

#[test]
fn fedora_takes_the_entries_of_the_specification() {
    let script = "set kernelopts=\"root=UUID=A ro\"\nload_env -f ${config_directory}/grubenv\n\
        set default=\"${saved_entry}\"\ninsmod blscfg\nblscfg\n";
    let entry = |version: &str| {
        format!(
            "title Fedora ({version})\nversion {version}\nlinux /boot/vmlinuz-{version}\n\
             initrd /boot/initrd.img-{version} $tuned_initrd\noptions $kernelopts quiet\n"
        )
    };
    let (new, old) = (entry("6.12"), entry("6.1"));
    let files = [
        (PATH, script),
        ("/loader/entries/id-6.12.conf", new.as_str()),
        ("/loader/entries/id-6.1.conf", old.as_str()),
    ];
    let menu_of = |files: &[(&str, &str)]| run(files).unwrap().entries;
    let entries = menu_of(&files);
    assert_eq!(entries[0].id, "id-6.12");
    assert_eq!(entries[0].args, "root=UUID=A ro quiet");
    assert_eq!(entries[0].initrds.len(), 1);
    let env = "# GRUB Environment Block\nsaved_entry=id-6.1\n";
    let saved = [&files[..], &[("/boot/grub/grubenv", env)]].concat();
    assert_eq!(menu_of(&saved)[0].id, "id-6.1");
}

#[test]
fn words_are_quoted_joined_and_split_as_grub_does() {
    let line = |words: &str| {
        let more = "set two='a  b'\nset linux=linuxefi\n";
        args(&format!(
            "{more}menuentry x {{\n$linux /boot/vmlinuz-6.12 {words}\n}}"
        ))
    };
    assert_eq!(line("$two"), "a b");
    assert_eq!(line("\"$two\""), "\"a  b\"");
    assert_eq!(line("'$two'"), "$two");
    assert_eq!(line("pre$two\\ post"), "prea \"b post\"");
    assert_eq!(line("x${none}y # comment"), "xy");
    assert_eq!(line("\"a\\\"b\" \\\n c"), "a\"b c");
    assert_eq!(line("$none"), "");
}

#[test]
fn control_flow_works() {
    let script = "for v in 1 2 3; do if [ $v -eq 2 ]; then continue; fi; set all=\"$all$v\"; done
        set n=; while [ \"$n\" != xxx ]; do n=x$n; done
        until [ $n = xxx ]; do break; done
        function both { set got=\"$1-$2\"; return 1; set got=never; }
        if both p q; then set bad=1; elif ! false; then set good=1; else set bad=2; fi
        menuentry t { linux /boot/vmlinuz-6.12 $all $n $got $good $bad
        }";
    assert_eq!(args(script), "13 xxx p-q 1");
}

#[test]
fn devices_are_found_by_uuid_label_and_file() {
    for search in [
        "search --no-floppy --fs-uuid --set=root --hint-bios=hd0,gpt9 B-2",
        "search --no-floppy --fs-uuid --set root b-2",
        "search.fs_uuid B-2 root hd0,gpt9",
        "search --label ROOT --set",
        "search -s root -f /etc/x",
        "set root='hd0,gpt2'",
        "search --set=other --label ROOT; set root=$other",
    ] {
        let script = format!("menuentry x {{\n{search}\nlinux /vmlinuz\n}}\n");
        let boot = volume_with(&[(PATH, script.as_str())]);
        let root = MemoryTree::new(&[("/vmlinuz", ""), ("/etc/x", "")]).into_volume("vda2", "B-2");
        let root = Volume {
            label: Some("ROOT".to_owned()),
            grub_names: vec!["hd0,gpt2".to_owned()],
            ..root
        };
        let found = menu(&[boot, root], 0, PATH).unwrap();
        assert_eq!(found.entries.len(), 1, "{search}: {:?}", found.unusable);
        assert_eq!(found.entries[0].kernel.volume, 1, "{search}");
    }
}

#[test]
fn a_missing_kernel_is_told() {
    let menu = run(&[(PATH, "menuentry Old { linux /boot/vmlinuz-5 ro\n }")]).unwrap();
    let expected = "entry \"Old\" names /boot/vmlinuz-5, which is not on (hd0,gpt1)";
    assert_eq!(menu.unusable, [expected]);
}

#[test]
fn nothing_runs_for_ever() {
    let deep = "if true; then ".repeat(100);
    let quotes = format!("set a=x\n{}", "set a=$a$a\n".repeat(64));
    let large = format!(
        "set v={}\nwhile true; do set i=x$i; set $i=$v; done",
        "x".repeat(60_000)
    );
    for (script, expected) in [
        ("while true; do true; done", "does not end"),
        ("function f { f; }\nf", "nested"),
        ("source /boot/grub/grub.cfg", "nested"),
        (
            "eval 'eval \"eval true\"'\nwhile true; do eval true; done",
            "does not end",
        ),
        (&quotes, "longer than"),
        (&deep, "nested"),
        ("menuentry 'x", "no end"),
        ("if true; then echo", "balanced"),
        ("fi }", "balanced"),
        ("while true; do menuentry x { true\n}\ndone", "entries"),
        ("while true; do set i=x$i; set $i=1; done", "variables"),
        (&large, "variables"),
    ] {
        let error = run(&[(PATH, script)]).unwrap_err().to_string();
        assert!(error.contains(expected), "{script}: {error}");
    }
}

proptest! {
    #[test]
    fn no_script_does_harm(
        script in "(if|then|else|fi|for|in|do|done|while|menuentry|linux|set|source|\\[|\\]|=|\\$|\\{|\\}|'|\"|\\\\|;|\n| |a|/boot/vmlinuz-6.12){0,60}"
    ) {
        if let Ok(menu) = run(&[(PATH, script.as_str())]) {
            prop_assert!(menu.entries.len() <= MAX_ENTRIES);
        }
    }
}
