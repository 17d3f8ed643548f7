//! The form of `start`'s answer, which follows from what containerd wrote to its stdin.

use podvisor_proto::containerd::bootstrap::{BootstrapParams, BootstrapResult};
use prost::Message;

use crate::arguments::Arguments;

/// The version of the shim protocol that a bootstrap answer announces.
const BOOTSTRAP_VERSION: i32 = 3;
const PROTOCOL: &str = "ttrpc";

/// How the address is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ReplyForm {
    /// As plain text: version 2, which every containerd from 1.6 on understands.
    Address,
    /// As a message: version 3, for containerd 2.3 and later.
    Bootstrap,
}

impl ReplyForm {
    /// The form for what was read from stdin. Bytes that decode as parameters could also be
    /// options: they are parameters only when they name this very task.
    pub(super) fn of_input(input: &[u8], arguments: &Arguments) -> Self {
        match BootstrapParams::decode(input) {
            Ok(params)
                if params.instance_id == arguments.id
                    && params.namespace == arguments.namespace =>
            {
                Self::Bootstrap
            }
            _ => Self::Address,
        }
    }

    pub(super) fn encode(self, address: &str) -> Vec<u8> {
        match self {
            Self::Address => address.as_bytes().to_vec(),
            Self::Bootstrap => BootstrapResult {
                version: BOOTSTRAP_VERSION,
                address: address.to_owned(),
                protocol: PROTOCOL.to_owned(),
                ..BootstrapResult::default()
            }
            .encode_to_vec(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use podvisor_proto::containerd::{any_of, runtimeoptions};

    use super::*;

    fn arguments() -> Arguments {
        let words = ["-namespace", "k8s.io", "-id", "pod1", "start"].map(OsString::from);
        Arguments::parse(words).unwrap()
    }

    #[test]
    fn nothing_and_options_are_answered_in_plain_text() {
        assert_eq!(ReplyForm::of_input(&[], &arguments()), ReplyForm::Address);
        let options = any_of(&runtimeoptions::Options::default()).encode_to_vec();
        assert_eq!(
            ReplyForm::of_input(&options, &arguments()),
            ReplyForm::Address
        );
        assert_eq!(ReplyForm::Address.encode("unix:///s"), b"unix:///s");
    }

    #[test]
    fn parameters_for_this_task_are_answered_by_a_message() {
        let params = BootstrapParams {
            instance_id: "pod1".into(),
            namespace: "k8s.io".into(),
            ..BootstrapParams::default()
        };
        assert_eq!(
            ReplyForm::of_input(&params.encode_to_vec(), &arguments()),
            ReplyForm::Bootstrap
        );
        let other = BootstrapParams {
            instance_id: "pod2".into(),
            ..params
        };
        assert_eq!(
            ReplyForm::of_input(&other.encode_to_vec(), &arguments()),
            ReplyForm::Address
        );
        let answer = BootstrapResult::decode(&*ReplyForm::Bootstrap.encode("unix:///s")).unwrap();
        assert_eq!((answer.version, answer.protocol.as_str()), (3, "ttrpc"));
    }
}
