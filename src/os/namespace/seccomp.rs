//! The system calls that a sandboxed program may not make (seccomp(2)).
//!
//! Namespaces and resource limits do most of the work. This list closes what they leave open:
//! memory that no limit counts (shared anonymous mappings, `memfd_create`, System V segments),
//! namespaces within the namespace, and kernel interfaces that a generated program does not need
//! and that have had many vulnerabilities. All other calls are allowed, so that interpreters and
//! compilers work unchanged.

use libc::{BPF_ABS, BPF_ALU, BPF_AND, BPF_JEQ, BPF_JMP, BPF_JSET, BPF_K, BPF_LD, BPF_RET, BPF_W};
use libc::{SECCOMP_RET_ALLOW, SECCOMP_RET_ERRNO, sock_filter};

#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: u32 = 0xC000_003E;
#[cfg(target_arch = "aarch64")]
const ARCHITECTURE: u32 = 0xC000_00B7;
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
compile_error!("the sandbox's system call filter knows x86-64 and aarch64 only");

/// Refused whatever their arguments.
const REFUSED: &[libc::c_long] = &[
    libc::SYS_memfd_create,
    libc::SYS_memfd_secret,
    libc::SYS_shmget,
    libc::SYS_msgget,
    libc::SYS_semget,
    libc::SYS_mq_open,
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_open_tree,
    libc::SYS_move_mount,
    libc::SYS_fsopen,
    libc::SYS_fsmount,
    libc::SYS_mount_setattr,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_io_uring_setup,
    libc::SYS_userfaultfd,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_kexec_load,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_open_by_handle_at,
];

/// Offsets in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCHITECTURE_AT: u32 = 4;
/// The lower half of an argument on a little-endian machine, which both architectures are.
const fn argument(index: u32) -> u32 {
    16 + 8 * index
}

const SHARED_ANONYMOUS: u32 = (libc::MAP_SHARED | libc::MAP_ANONYMOUS) as u32;
/// On x86-64 this bit selects a second table of system calls.
const X32: u32 = 0x4000_0000;

/// Builds the filter for `PR_SET_SECCOMP`.
pub(super) fn filter() -> Vec<sock_filter> {
    let refuse = |errno: i32| statement(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | errno as u32);
    let load = |offset| statement(BPF_LD | BPF_W | BPF_ABS, offset);
    let mut filter = vec![
        load(ARCHITECTURE_AT),
        jump(BPF_JEQ, ARCHITECTURE, 1, 0),
        refuse(libc::ENOSYS),
        load(NUMBER),
        jump(BPF_JSET, X32, 0, 1),
        refuse(libc::ENOSYS),
    ];
    for number in REFUSED {
        filter.push(jump(BPF_JEQ, *number as u32, 0, 1));
        filter.push(refuse(libc::EPERM));
    }
    // Its flags are in memory, which no filter can read. C libraries fall back to clone.
    filter.push(jump(BPF_JEQ, libc::SYS_clone3 as u32, 0, 1));
    filter.push(refuse(libc::ENOSYS));
    // clone: not with a new user namespace, because that leads to all other kinds.
    filter.push(jump(BPF_JEQ, libc::SYS_clone as u32, 0, 4));
    filter.push(load(argument(0)));
    filter.push(jump(BPF_JSET, libc::CLONE_NEWUSER as u32, 0, 1));
    filter.push(refuse(libc::EPERM));
    filter.push(load(NUMBER));
    // mmap: not both shared and anonymous.
    filter.push(jump(BPF_JEQ, libc::SYS_mmap as u32, 0, 4));
    filter.push(load(argument(3)));
    filter.push(statement(BPF_ALU | BPF_AND | BPF_K, SHARED_ANONYMOUS));
    filter.push(jump(BPF_JEQ, SHARED_ANONYMOUS, 0, 1));
    filter.push(refuse(libc::ENOMEM));
    filter.push(statement(BPF_RET | BPF_K, SECCOMP_RET_ALLOW));
    filter
}

fn statement(code: u32, k: u32) -> sock_filter {
    sock_filter {
        code: code as u16,
        jt: 0,
        jf: 0,
        k,
    }
}

/// Skips `then` instructions if the condition holds, else `otherwise`.
fn jump(condition: u32, k: u32, then: u8, otherwise: u8) -> sock_filter {
    sock_filter {
        code: (BPF_JMP | condition | BPF_K) as u16,
        jt: then,
        jf: otherwise,
        k,
    }
}
