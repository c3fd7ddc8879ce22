// broken: E0200
// Streams copy to and from the addresses of a driver's memory: only unsafe code may say which.

#[derive(Debug)]
struct Mine(tensorhold::Device);

#[cfg(feature = "broken")]
impl tensorhold::Driver for Mine {
    fn name(&self) -> &str {
        "mine"
    }
    fn kind(&self) -> tensorhold::DeviceKind {
        tensorhold::DeviceKind::Cuda(0)
    }
    fn memory(&self) -> std::sync::Arc<dyn tensorhold::allocator::Memory> {
        self.0.memory()
    }
    fn staging_memory(&self) -> std::sync::Arc<dyn tensorhold::allocator::Memory> {
        self.0.staging_memory()
    }
    fn stream(&self) -> tensorhold::Result<Box<dyn tensorhold::Stream>> {
        self.0.driver().stream()
    }
}

fn main() {
    println!("{:?}", Mine(tensorhold::Device::host()).0);
}
