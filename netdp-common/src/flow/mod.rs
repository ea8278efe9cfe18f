//! The state of flows: time, TCP, timeouts, eviction.

mod carried;
mod clock;
mod closing;
mod eviction;
mod inbound;
mod stamp;
mod tcp;
mod timeouts;

pub use carried::{Carried, lasted};
pub use clock::{TICK_SHIFT, age, idle, left, ticks, ticks32};
pub use closing::{Closing, Sender};
pub use eviction::{
    ANSWERED_TICKS, CLOSED_TICKS, EvictionClass, STREAM_TICKS, UNANSWERED_TICKS, eviction_class,
    is_free_again, is_silent_stream,
};
pub use inbound::{BY_PROTOCOL, LINGER_TICKS, asked_ticks, is_asked_still, is_fresh};
pub use stamp::{is_stamp_fresh, stamp};
pub use tcp::{
    SEEN_CARRIED_OVER, SEEN_DATA, SEEN_FIN, SEEN_OTHERS_FIN, SEEN_OTHERS_RST, SEEN_OWN, SEEN_RST,
    SEEN_SYN, TcpState, fin_is_plausible, is_closing, is_in_window, observe, refreshes,
    rst_is_acceptable, tcp_state,
};
pub use timeouts::{
    CLOSED_SECONDS, DRAIN_SECONDS, INBOUND_SECONDS, Timeouts, asked_seconds, live_seconds,
};
