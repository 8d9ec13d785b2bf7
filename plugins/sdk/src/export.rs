//! The macros that export a plugin from its library.

/// Exports a type that implements [`Task`](crate::Task) and `Default` as this library's plugin.
///
/// ```ignore
/// e2llm_plugin::export_task! { Qmsum, id: "qmsum", description: "Query-based meeting summarisation" }
/// ```
/// The plugin's version is the crate's.
#[macro_export]
macro_rules! export_task {
    ($task:ty, id: $id:expr, description: $about:expr $(,)?) => {
        impl $crate::serve::Exported for $task {
            const ID: &'static str = $id;
        }

        $crate::__export! { $crate::Kind::Task, $id, $about, "", $crate::serve::create_task::<$task> }
    };
}

/// Exports a type that implements [`Metric`](crate::Metric) and `Default` as this library's plugin.
///
/// `provides` lists the ids of its values, separated by spaces: a host finds the plugin of a metric id by them.
#[macro_export]
macro_rules! export_metric {
    ($metric:ty, id: $id:expr, description: $about:expr, provides: $provides:expr $(,)?) => {
        $crate::__export! {
            $crate::Kind::Metric, $id, $about, $provides, $crate::serve::create_metric::<$metric>
        }
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __export {
    ($kind:expr, $id:expr, $about:expr, $provides:expr, $create:expr) => {
        const __E2LLM_IDENTITY_LEN: usize =
            $crate::identity_len($id, $kind, env!("CARGO_PKG_VERSION"), $about, $provides);

        #[used]
        #[cfg_attr(target_os = "macos", unsafe(link_section = "__DATA,__e2llm_plugin"))]
        #[cfg_attr(not(target_os = "macos"), unsafe(link_section = ".e2llm_plugin"))]
        static __E2LLM_IDENTITY: [u8; __E2LLM_IDENTITY_LEN] =
            $crate::identity_bytes($id, $kind, env!("CARGO_PKG_VERSION"), $about, $provides);

        static __E2LLM_PLUGIN: $crate::__private::abi::E2Plugin = $crate::__private::abi::E2Plugin {
            magic: $crate::__private::abi::E2_MAGIC,
            struct_size: size_of::<$crate::__private::abi::E2Plugin>() as u32,
            abi_major: $crate::__private::abi::E2_ABI_MAJOR,
            abi_minor: $crate::__private::abi::E2_ABI_MINOR,
            kind: $kind.number(),
            flags: $crate::__private::abi::E2_FLAG_REENTRANT | $crate::__private::abi::E2_FLAG_DETERMINISTIC,
            id: $crate::__private::abi::E2Str::new($id),
            version: $crate::__private::abi::E2Str::new(env!("CARGO_PKG_VERSION")),
            description: $crate::__private::abi::E2Str::new($about),
            sdk: $crate::__private::abi::E2Str::new($crate::serve::SDK),
            target: $crate::__private::abi::E2Str::new($crate::TARGET),
            create: Some($create),
            call: Some($crate::serve::call),
            destroy: Some($crate::serve::destroy),
        };

        /// The library's one exported function.
        // SAFETY: the name is the contract with the host; a library exports one plugin.
        #[unsafe(no_mangle)]
        pub extern "C" fn e2llm_plugin_entry() -> *const $crate::__private::abi::E2Plugin {
            &__E2LLM_PLUGIN
        }
    };
}
