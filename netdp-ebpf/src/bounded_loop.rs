//! Loops by `bpf_loop`, which the verifier walks once.

use aya_ebpf::helpers::bpf_loop;
use core::ffi::{c_long, c_void};

struct Frame<'a, T, S, F> {
    env: &'a T,
    state: &'a mut S,
    step: F,
}

/// Calls `step` with 0, 1, 2 … until it returns false or `n` calls are made.
#[inline(always)]
pub fn run<T, S, F>(env: &T, n: u32, state: &mut S, step: F)
where
    F: Fn(&T, u32, &mut S) -> bool,
{
    let mut frame = Frame { env, state, step };
    // SAFETY: the callback gets `frame`, alive for the whole call.
    unsafe {
        bpf_loop(
            n,
            call::<T, S, F> as *mut c_void,
            (&raw mut frame).cast(),
            0,
        );
    }
}

unsafe extern "C" fn call<T, S, F>(n: u32, frame: *mut c_void) -> c_long
where
    F: Fn(&T, u32, &mut S) -> bool,
{
    // SAFETY: `run` passes a `Frame` of exactly these types.
    let frame = unsafe { &mut *frame.cast::<Frame<'_, T, S, F>>() };
    c_long::from(!(frame.step)(frame.env, n, frame.state))
}
