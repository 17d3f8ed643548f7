//! Points in time as protobuf's `Timestamp`.

use std::time::SystemTime;

use prost_types::Timestamp;

const NANOS_PER_SECOND: i64 = 1_000_000_000;

/// The present wall clock time.
pub fn now() -> Timestamp {
    timestamp(SystemTime::now())
}

/// A wall clock time, rounded down to whole nanoseconds.
pub fn timestamp(time: SystemTime) -> Timestamp {
    Timestamp::from(time)
}

/// A wall clock time given in nanoseconds since the epoch, as the agent reports it.
pub fn timestamp_from_nanos(nanos: i64) -> Timestamp {
    Timestamp {
        seconds: nanos.div_euclid(NANOS_PER_SECOND),
        // Always below 10^9, so it fits.
        nanos: i32::try_from(nanos.rem_euclid(NANOS_PER_SECOND)).unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, UNIX_EPOCH};

    #[test]
    fn nanoseconds_and_system_time_agree() {
        let nanos: u32 = 1_500_000_123;
        let time = UNIX_EPOCH + Duration::from_nanos(u64::from(nanos));
        assert_eq!(timestamp_from_nanos(i64::from(nanos)), timestamp(time));
    }

    #[test]
    fn times_before_the_epoch_count_their_nanoseconds_forwards() {
        assert_eq!(
            timestamp_from_nanos(-1),
            Timestamp {
                seconds: -1,
                nanos: 999_999_999
            }
        );
    }
}
