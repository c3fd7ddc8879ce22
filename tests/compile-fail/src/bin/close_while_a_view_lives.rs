// broken: E0505
use tensorhold::{Device, Loader};

fn main() -> tensorhold::Result<()> {
    let weights = Loader::new(Device::host()).checkpoint("model.safetensors")?.load()?;
    let view = weights.view("t")?;
    #[cfg(not(feature = "broken"))]
    println!("{view:?}");
    let closed = weights.close();
    #[cfg(feature = "broken")]
    println!("{view:?}");
    assert!(closed.held.is_empty());
    Ok(())
}
