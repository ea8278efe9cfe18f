//! Problems that operators report about NAT, reproduced with real sockets and compared with
//! ip-masq-agent's rules in the same situation ([`both`](crate::site::both)).

mod moves;
mod ports;
