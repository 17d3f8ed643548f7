//! Guest memory: its size, its backing, its way back to the host.

amount! {
    /// A size of guest memory: below 32 MiB no Linux of today starts, and the memory map has room for
    /// 383 GiB.
    MemorySize in [32 << 20, 383 << 30] by 4096, "an amount of memory"
}

choice! {
    /// What guest memory lies on.
    Hugepages {
        None = "none": "pages of 4 KiB",
        Thp = "thp": "transparent huge pages where the kernel finds them",
        Mi2 = "2Mi": "huge pages of 2 MiB from the node's pool instead of the pod's memory limit; the pod fails when there are too few, and under a \
            kubelet without `limits.hugepages-2Mi` of as much",
        Gi1 = "1Gi": "huge pages of 1 GiB from the node's pool instead of the pod's memory limit; the pod fails when there are too few, and under a \
            kubelet without `limits.hugepages-1Gi` of as much",
    }
}

choice! {
    /// How memory that the guest does not use goes back to the host.
    Balloon {
        Off = "off": "it does not",
        Reporting = "reporting": "the guest reports free pages, and takes them back as it needs them",
        Auto = "auto": "reporting, and the balloon grows as long as the pod waits for memory of the host",
    }
}
