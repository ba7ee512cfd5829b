//! Converts the image of an OCI layout, and adds the result to another layout.

#![allow(clippy::print_stdout, reason = "a program for the terminal")]

use std::error::Error;
use std::path::Path;
use std::sync::Arc;

use soci_index::standalone::{
    ConversionObserver, Destination, LocalImage, Phase, Request, Source, convert,
};
use soci_index::{Note, Observer, Platforms};

/// Prints the outcome of each layer, and warnings.
struct Printer;

impl Observer for Printer {
    fn note(&self, note: &Note) {
        println!("{note}");
    }
}

impl ConversionObserver for Printer {
    fn phase(&self, phase: Phase, bytes: Option<u64>) {
        match bytes {
            Some(bytes) => println!("{} {bytes} bytes", phase.name()),
            None => println!("{}", phase.name()),
        }
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [from, to] = arguments.as_slice() else {
        return Err("usage: convert LAYOUT LAYOUT".into());
    };
    let source = Source::Local(LocalImage::open(Path::new(from))?);
    let destination = Destination::Layout {
        path: to.into(),
        name: None,
    };
    let mut request = Request::new(source, destination);
    request.options.platforms = Platforms::All;
    request.options.build.min_layer_size = 0;
    let report = convert(request, Arc::new(Printer)).await?;
    for made in &report.converted.platforms {
        if let Some(bound) = &made.index {
            println!("{} has index {}", made.platform, bound.index.digest);
        }
    }
    println!("image {}", report.converted.image.digest);
    Ok(())
}
