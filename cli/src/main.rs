//! The command line: check a node, run a pod manifest, look into pods.

fn main() {}
