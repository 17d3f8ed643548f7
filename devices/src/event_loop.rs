//! The thread that serves devices whose work is short: one epoll loop for all of them.
