// broken: E0505
use tensorhold::{Device, Loader};

fn main() -> tensorhold::Result<()> {
    let weights = Loader::new(Device::host()).checkpoint("model.safetensors")?.load()?;
    let view = weights.view("t")?;
    #[cfg(feature = "broken")]
    drop(weights);
    println!("{view:?}");
    Ok(())
}
