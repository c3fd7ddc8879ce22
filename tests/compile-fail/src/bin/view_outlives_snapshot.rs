// broken: E0505
use tensorhold::{Device, Loader, WeightStore};

fn main() -> tensorhold::Result<()> {
    let store = WeightStore::load(Loader::new(Device::host()).checkpoint("model.safetensors")?)?;
    let weights = store.snapshot();
    let view = weights.view("t")?;
    #[cfg(feature = "broken")]
    drop(weights);
    println!("{view:?}");
    Ok(())
}
