//! The machine's own cuFile, in whatever mode it is, into the memory of a CUDA device. `scripts/gpu-test` runs it where both are there.

use std::sync::Arc;

use tensorhold_allocator::Pool;

use super::{Gds, Provider, Registered, System};
use crate::device::Device;
use crate::io::conformance::{Targets, conforms_on};

#[test]
#[ignore = "needs a CUDA device and cuFile"]
fn cufile_conforms() {
    let device = Device::cuda(0).unwrap();
    let cufile = System.open().unwrap();
    println!("{}, {}", cufile.describe(), cufile.mode().describe());
    let _current = device.make_current().unwrap();
    let pool = Pool::builder(Arc::new(Registered::new(&device, &cufile))).build().unwrap();
    conforms_on(&Gds::new(Arc::clone(&cufile)), true, &Targets { device: &device, pool: &pool });
    assert_eq!(cufile.refusal(), None);
}
