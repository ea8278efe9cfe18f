//! Objects of the API, reduced to what is read of them.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use serde::Deserialize;
use serde::de::IgnoredAny;
use std::borrow::Cow;

/// The kind of an object, named by the type of its `spec`.
pub(super) trait Kind {
    /// The version, or what has to be known for it.
    type Version: Send + Sync + 'static;
    /// The scope: a namespace or the cluster.
    type Scope;
    /// The name of the kind.
    const NAME: &'static str;
    /// Its plural, in paths.
    const PLURAL: &'static str;
    /// The API group; empty for the core.
    const GROUP: &'static str;
    /// Returns the version of the group.
    fn version(version: &Self::Version) -> &'static str;
}

/// An object with the fields of `spec` and `status` that are read.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Object<Spec, Status = IgnoredAny> {
    metadata: ObjectMeta,
    pub spec: Spec,
    pub status: Status,
}

impl<Spec: Kind, Status> Resource for Object<Spec, Status> {
    type DynamicType = Spec::Version;
    type Scope = Spec::Scope;

    fn kind(_: &Self::DynamicType) -> Cow<'_, str> {
        Spec::NAME.into()
    }

    fn group(_: &Self::DynamicType) -> Cow<'_, str> {
        Spec::GROUP.into()
    }

    fn version(version: &Self::DynamicType) -> Cow<'_, str> {
        Spec::version(version).into()
    }

    fn plural(_: &Self::DynamicType) -> Cow<'_, str> {
        Spec::PLURAL.into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}
