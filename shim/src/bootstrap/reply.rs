//! The forms of `start`'s answer.

use podvisor_proto::containerd::bootstrap::BootstrapResult;
use prost::Message;
use serde_json::json;

/// The version of the shim protocol that an answer other than plain text announces.
const VERSION: i32 = 3;
const PROTOCOL: &str = "ttrpc";

/// How the address is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ReplyForm {
    /// As plain text: version 2, which every containerd from 1.6 on understands.
    Address,
    /// As JSON, for the sandboxes of containerd 2.0 to 2.2.
    Json,
    /// As a message, for containerd 2.3 and later.
    Bootstrap,
}

impl ReplyForm {
    pub(super) fn encode(self, address: &str) -> Vec<u8> {
        match self {
            Self::Address => address.as_bytes().to_vec(),
            Self::Json => {
                let answer = json!({"version": VERSION, "address": address, "protocol": PROTOCOL});
                answer.to_string().into_bytes()
            }
            Self::Bootstrap => BootstrapResult {
                version: VERSION,
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
    use super::*;

    #[test]
    fn every_form_tells_the_address() {
        assert_eq!(ReplyForm::Address.encode("unix:///s"), b"unix:///s");
        let answer: serde_json::Value =
            serde_json::from_slice(&ReplyForm::Json.encode("unix:///s")).unwrap();
        let expected = json!({"version": 3, "address": "unix:///s", "protocol": "ttrpc"});
        assert_eq!(answer, expected);
        let answer = BootstrapResult::decode(&*ReplyForm::Bootstrap.encode("unix:///s")).unwrap();
        assert_eq!((answer.version, answer.protocol.as_str()), (3, "ttrpc"));
        assert_eq!(answer.address, "unix:///s");
    }
}
