//! Whether and when an ended container is started again. Pure.

use std::time::Duration;

use crate::manifest::pod::RestartPolicy;

/// The kubelet's bounds (pkg/kubelet/kubelet.go: backOffPeriod, MaxContainerBackOff).
const FIRST_PAUSE: Duration = Duration::from_secs(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// What a container is in its pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Runs to its end before those that follow.
    Init,
    /// Runs beside the others.
    App,
}

/// The pause before start number `attempt + 1` of a container that ended with `exit_code`; `None`
/// when it stays ended.
pub fn pause(policy: RestartPolicy, role: Role, exit_code: i32, attempt: u32) -> Option<Duration> {
    let again = match (policy, role) {
        (RestartPolicy::Never, _) => false,
        (RestartPolicy::Always, Role::App) => true,
        (RestartPolicy::Always, Role::Init) | (RestartPolicy::OnFailure, _) => exit_code != 0,
    };
    let doublings = |attempt: u32| 1_u32.checked_shl(attempt - 1).unwrap_or(u32::MAX);
    again.then(|| match attempt {
        0 => Duration::ZERO,
        _ => FIRST_PAUSE
            .saturating_mul(doublings(attempt))
            .min(LONGEST_PAUSE),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_decide_by_exit_code() {
        use RestartPolicy::{Always, Never, OnFailure};
        for (policy, role, code, again) in [
            (Always, Role::App, 0, true),
            (Always, Role::App, 1, true),
            (Always, Role::Init, 0, false),
            (Always, Role::Init, 1, true),
            (OnFailure, Role::App, 0, false),
            (OnFailure, Role::App, 137, true),
            (Never, Role::App, 1, false),
            (Never, Role::Init, 1, false),
        ] {
            assert_eq!(
                pause(policy, role, code, 0).is_some(),
                again,
                "{policy:?} {role:?} {code}"
            );
        }
    }

    #[test]
    fn pauses_double_up_to_five_minutes() {
        let seconds = |attempt| {
            pause(RestartPolicy::Always, Role::App, 1, attempt)
                .unwrap()
                .as_secs()
        };
        assert_eq!(
            [0, 1, 2, 3, 5, 6, 7, 100].map(seconds),
            [0, 10, 20, 40, 160, 300, 300, 300]
        );
    }
}
