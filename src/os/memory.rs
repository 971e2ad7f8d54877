//! How much freed memory the C library's allocator keeps, and when it returns it to the kernel.
//!
//! glibc takes large blocks from the kernel one by one (mmap) and returns each when it is freed.
//! But its threshold for "large" grows to the largest block that was freed, up to 32 MiB. From then
//! on, smaller blocks come out of an arena, whose pages stay with the process: after a burst of
//! large bodies the daemon would keep the burst's memory for ever.

/// Keeps glibc from raising its threshold: blocks from [`limits::LARGE_BLOCK_BYTES_MIN`] on are
/// always returned to the kernel when they are freed. Must be called at the start.
///
/// [`limits::LARGE_BLOCK_BYTES_MIN`]: crate::limits::os::LARGE_BLOCK_BYTES_MIN
pub fn return_large_blocks() {
    #[cfg(target_env = "gnu")]
    {
        let bytes = crate::limits::os::LARGE_BLOCK_BYTES_MIN;
        // SAFETY: mallopt(3) sets a number of the allocator and reads no memory of ours.
        let is_set = unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, bytes) };
        if is_set == 0 {
            log::warn!(
                "cannot set the allocator's mmap threshold; freed memory may not return to the \
                 system"
            );
        }
    }
}

/// Returns the free pages of all arenas to the kernel. It holds each arena's lock meanwhile, for
/// about a millisecond per 10 MiB that are free in it.
pub fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim(3) may be called from any thread at any time; it touches free memory.
    unsafe {
        libc::malloc_trim(0);
    }
}
