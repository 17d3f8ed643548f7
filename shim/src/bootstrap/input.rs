//! What containerd writes to `start`'s stdin: nothing, the runtime's options (until 2.2), or
//! parameters with the options among them (from 2.3 on).

use std::path::PathBuf;

use podvisor_proto::containerd::Any;
use podvisor_proto::containerd::bootstrap::BootstrapParams;
use prost::Message;

use super::reply::ReplyForm;
use crate::arguments::Arguments;
use crate::config;

/// The decoded input.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Input {
    /// Parameters.
    Params(Box<BootstrapParams>),
    /// Options, or nothing at all.
    Options(Any),
}

impl Input {
    /// Decodes what was read. Bytes that decode as parameters could also be options: they are
    /// parameters only when they name this very task.
    pub(super) fn decode(input: &[u8], arguments: &Arguments) -> Self {
        match BootstrapParams::decode(input) {
            Ok(params)
                if params.instance_id == arguments.id
                    && params.namespace == arguments.namespace =>
            {
                Self::Params(Box::new(params))
            }
            // What nobody understands names no options.
            _ => Self::Options(Any::decode(input).unwrap_or_default()),
        }
    }

    /// How to answer, in a bundle that has a spec or not.
    pub(super) fn reply_form(&self, has_spec: bool) -> ReplyForm {
        match self {
            Self::Params(_) => ReplyForm::Bootstrap,
            // Only containerd 2.0 and later starts a shim for a sandbox, and takes none of
            // version 2 for it.
            Self::Options(_) if !has_spec => ReplyForm::Json,
            Self::Options(_) => ReplyForm::Address,
        }
    }

    /// The node's configuration that the options name.
    pub(super) fn config_path(&self) -> Option<PathBuf> {
        match self {
            Self::Params(params) => {
                let values = params.extensions.iter().filter_map(|it| it.value.as_ref());
                values.filter_map(config::named_by).next()
            }
            Self::Options(options) => config::named_by(options),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;
    use std::path::Path;

    use podvisor_proto::containerd::{any_of, runtimeoptions};

    use super::*;

    /// What containerd 2.3 writes for the sandbox `pod1` of a handler with `ConfigPath`, put
    /// together byte by byte from its definition (api/runtime/bootstrap/v1/bootstrap.proto).
    const ENCODED: &[u8] =
        b"\x0a\x04pod1\x12\x06k8s.io\x18\xfc\xff\xff\xff\xff\xff\xff\xff\xff\x01\
        \x22\x052.3.4\x2a\x29/run/containerd/containerd.sock.ttrpc-abc\
        \x32\x1f/run/containerd/containerd.sock\x3a\x13/usr/bin/containerd\
        \x42\x30\x0a\x2e\x0a\x19runtimeoptions.v1.Options\x12\x11\x12\x0f/etc/x/vm2.toml\
        \x4a\x11/run/containerd/s";

    fn decode(input: &[u8]) -> Input {
        let words = ["-namespace", "k8s.io", "-id", "pod1", "start"].map(OsString::from);
        Input::decode(input, &Arguments::parse(words).unwrap())
    }

    #[test]
    fn nothing_and_options_are_answered_in_the_words_of_their_time() {
        let options = runtimeoptions::Options {
            config_path: "/etc/x.toml".into(),
            ..runtimeoptions::Options::default()
        };
        let options = any_of(&options).encode_to_vec();
        for (input, config) in [(&[] as &[u8], None), (&options, Some("/etc/x.toml"))] {
            let input = decode(input);
            assert_eq!(input.reply_form(true), ReplyForm::Address);
            assert_eq!(input.reply_form(false), ReplyForm::Json);
            assert_eq!(input.config_path().as_deref(), config.map(Path::new));
        }
    }

    #[test]
    fn parameters_are_understood() {
        let input = decode(ENCODED);
        let Input::Params(params) = &input else {
            panic!("{input:?}");
        };
        assert_eq!(params.containerd_version, "2.3.4");
        assert_eq!(params.log_level, -4);
        assert_eq!(params.socket_dir(), "/run/containerd/s");
        for has_spec in [false, true] {
            assert_eq!(input.reply_form(has_spec), ReplyForm::Bootstrap);
        }
        assert_eq!(
            input.config_path().as_deref(),
            Some(Path::new("/etc/x/vm2.toml"))
        );
    }

    #[test]
    fn parameters_for_another_task_are_none() {
        let params = BootstrapParams {
            instance_id: "pod2".into(),
            namespace: "k8s.io".into(),
            ..BootstrapParams::default()
        };
        let input = decode(&params.encode_to_vec());
        assert!(matches!(input, Input::Options(_)));
        assert_eq!(input.config_path(), None);
    }
}
