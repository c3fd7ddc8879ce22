// broken: E0505
use tensorhold::{Device, Loader};

fn main() -> tensorhold::Result<()> {
    let weights = Loader::new(Device::host()).checkpoint("model.safetensors")?.load()?;
    let tensor = weights.tensor("t")?;
    let elements = tensor.as_slice::<f32>()?;
    #[cfg(feature = "broken")]
    drop(tensor);
    println!("{elements:?}");
    Ok(())
}
