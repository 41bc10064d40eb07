//! What work takes from memory.

/// Does `work`, which takes no more than `most` bytes from memory at any time, whatever the bytes claim that it reads.
pub(super) fn within<T>(most: usize, work: impl FnOnce() -> T) -> T {
    let mut done = None;
    let taken = allocation_counter::measure(|| done = Some(work()));
    assert!(taken.bytes_max <= most as u64, "{} bytes were taken from memory, at most {most} may be", taken.bytes_max);
    done.unwrap()
}
