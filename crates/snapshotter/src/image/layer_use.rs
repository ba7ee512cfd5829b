//! Which image of which layer a snapshot shows: what its record keeps.

use serde::{Deserialize, Serialize};

use crate::store::LayerKey;

/// A snapshot whose `fs` is a mount of a layer in the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerUse {
    /// The layer as the store knows it.
    #[serde(flatten, with = "layer_key")]
    pub layer: LayerKey,
    /// Which `meta` image of the layer is mounted.
    pub patch: String,
}

mod layer_key {
    //! How a layer's key is written in a record.

    use serde::{Deserialize, Deserializer, Serialize, Serializer};
    use soci_oci::digest::Digest;

    use crate::store::LayerKey;

    #[derive(Serialize, Deserialize)]
    struct Written {
        digest: Digest,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        ztoc: Option<Digest>,
    }

    pub(super) fn serialize<S: Serializer>(key: &LayerKey, to: S) -> Result<S::Ok, S::Error> {
        Written {
            digest: key.layer,
            ztoc: key.ztoc,
        }
        .serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<LayerKey, D::Error> {
        let Written { digest, ztoc } = Written::deserialize(from)?;
        Ok(LayerKey {
            layer: digest,
            ztoc,
        })
    }
}
