// broken: E0597
use tensorhold::{Device, Loader};

fn main() -> tensorhold::Result<()> {
    let outer = Loader::new(Device::host()).checkpoint("a.safetensors")?.load()?;
    let mut view = outer.view("t")?;
    println!("{view:?}");
    {
        let inner = Loader::new(Device::host()).checkpoint("b.safetensors")?.load()?;
        println!("{:?}", inner.view("t")?);
        #[cfg(feature = "broken")]
        {
            view = inner.view("t")?;
        }
        #[cfg(not(feature = "broken"))]
        {
            view = outer.view("t")?;
        }
    }
    println!("{view:?}");
    Ok(())
}
