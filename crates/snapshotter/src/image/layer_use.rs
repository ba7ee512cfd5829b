//! Which image of which layer a snapshot shows. Stored in the snapshot's record.

use serde::{Deserialize, Serialize};

use crate::store::LayerKey;

/// A snapshot whose `fs` is a mount of a layer in the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerUse {
    /// The key of the layer in the store.
    #[serde(flatten, with = "layer_key")]
    pub layer: LayerKey,
    /// The patch of the mounted `meta` image.
    pub patch: String,
}

mod layer_key {
    //! The format of a layer key in a record.

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
