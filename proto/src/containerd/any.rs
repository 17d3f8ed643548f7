//! `google.protobuf.Any` as containerd uses it: the type URL is the bare full name, without a host.

use prost::{Message, Name};
use prost_types::Any;

/// Wraps `message` under `type_url`.
pub fn any(type_url: &str, message: &impl Message) -> Any {
    Any {
        type_url: type_url.to_owned(),
        value: message.encode_to_vec(),
    }
}

/// Wraps `message` under its own full name.
pub fn any_of<M: Name>(message: &M) -> Any {
    any(&M::full_name(), message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroups::{METRICS_TYPE_URL, Metrics};
    use crate::containerd::events::TaskExit;

    #[test]
    fn type_urls_are_bare_full_names() {
        assert_eq!(
            any_of(&TaskExit::default()).type_url,
            "containerd.events.TaskExit"
        );
        assert_eq!(any_of(&Metrics::default()).type_url, METRICS_TYPE_URL);
    }

    #[test]
    fn a_wrapped_message_decodes_to_itself() {
        let exit = TaskExit {
            container_id: "c".into(),
            exit_status: 137,
            ..TaskExit::default()
        };
        assert_eq!(TaskExit::decode(&*any_of(&exit).value).unwrap(), exit);
    }
}
