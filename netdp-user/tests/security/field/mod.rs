//! What operators report of NAT in the field: with real sockets, and beside ip-masq-agent's
//! rules in the same situation ([`both`](crate::site::both)).

mod moves;
mod ports;
