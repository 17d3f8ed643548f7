//! System calls that neither std nor rustix offers, each behind a safe function.

pub mod clone;
pub mod mount;
pub mod poll;
pub mod signal;
pub mod vsock;
