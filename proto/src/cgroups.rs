//! `io.containerd.cgroups.v2`: what a container uses, in the control group's own words.

mod generated {
    #![expect(missing_docs, reason = "generated; the .proto file has the comments")]
    include!(concat!(env!("OUT_DIR"), "/cgroups.rs"));
}

pub use generated::io::containerd::cgroups::v2::*;

/// Type URL under which containerd takes [`Metrics`].
pub const METRICS_TYPE_URL: &str = "io.containerd.cgroups.v2.Metrics";
