// broken: E0502
use tensorhold::{Device, Loader};

fn main() -> tensorhold::Result<()> {
    let mut weights = Loader::new(Device::host()).checkpoint("model.safetensors")?.load()?;
    let view = weights.view("t")?;
    #[cfg(not(feature = "broken"))]
    println!("{view:?}");
    let writable = weights.get_mut("t")?;
    assert!(writable.is_some());
    #[cfg(feature = "broken")]
    println!("{view:?}");
    Ok(())
}
