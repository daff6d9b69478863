//! The journal on simulated disks: what it costs, what survives every power cut, how it lives with a full ring and
//! with failing devices.

mod cost;
mod crash;
mod faults;
mod life;
mod toy;
