// broken: E0277
use tensorhold::Device;

fn main() -> tensorhold::Result<()> {
    let device = Device::host();
    let guard = device.make_current()?;
    #[cfg(feature = "broken")]
    std::thread::scope(|scope| scope.spawn(move || drop(guard)).join()).unwrap();
    #[cfg(not(feature = "broken"))]
    drop(guard);
    Ok(())
}
