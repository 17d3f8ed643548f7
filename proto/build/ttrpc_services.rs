//! Turns a `service` of a .proto file into a trait, its server and its client for `crate::ttrpc`.

use prost_build::{Comments, Method, Service, ServiceGenerator};

/// Writes, for a service `Foo`: `FOO_SERVICE_NAME`, the trait `Foo`, `FooServer` and `FooClient`.
pub struct TtrpcServices;

impl ServiceGenerator for TtrpcServices {
    fn generate(&mut self, service: Service, out: &mut String) {
        for method in &service.methods {
            assert!(
                !method.client_streaming && !method.server_streaming,
                "{}.{}: only unary calls are supported",
                service.proto_name,
                method.proto_name
            );
        }
        let name = &service.name;
        let name_constant = format!("{}_SERVICE_NAME", name.to_uppercase());
        out.push_str(&format!(
            "/// Full name of the service `{name}` on the wire.\n\
             pub const {name_constant}: &str = \"{}.{}\";\n",
            service.package, service.proto_name
        ));
        write_trait(&service, out);
        write_server(&service, &name_constant, out);
        write_client(&service, &name_constant, out);
    }
}

fn write_trait(service: &Service, out: &mut String) {
    let name = &service.name;
    write_comments(&service.comments, &format!("Handlers of `{name}`."), out);
    out.push_str(&format!("pub trait {name}: Send + Sync + 'static {{\n"));
    for method in &service.methods {
        write_method_comments(method, out);
        out.push_str(&format!(
            "fn {}(&self, request: {}) -> impl ::core::future::Future<Output = \
             ::core::result::Result<{}, crate::ttrpc::Status>> + Send;\n",
            method.name, method.input_type, method.output_type
        ));
    }
    out.push_str("}\n");
}

fn write_server(service: &Service, name_constant: &str, out: &mut String) {
    let name = &service.name;
    out.push_str(&format!(
        "/// Serves an implementation of [`{name}`].\n\
         #[derive(Debug)]\n\
         pub struct {name}Server<T> {{ name: &'static str, handlers: ::std::sync::Arc<T> }}\n\
         impl<T: {name}> {name}Server<T> {{\n\
         /// Serves `handlers` under the service's own name.\n\
         pub fn new(handlers: ::std::sync::Arc<T>) -> Self {{ Self {{ name: {name_constant}, handlers }} }}\n\
         /// Serves `handlers` under another name, for a service that exists in several versions\n\
         /// with the same messages.\n\
         pub fn named(name: &'static str, handlers: ::std::sync::Arc<T>) -> Self {{ Self {{ name, handlers }} }}\n\
         }}\n\
         impl<T: {name}> crate::ttrpc::Service for {name}Server<T> {{\n\
         fn name(&self) -> &'static str {{ self.name }}\n\
         fn call(&self, method: &str, payload: ::bytes::Bytes) -> crate::ttrpc::CallFuture {{\n\
         let handlers = ::std::sync::Arc::clone(&self.handlers);\n\
         match method {{\n"
    ));
    for method in &service.methods {
        out.push_str(&format!(
            "\"{}\" => crate::ttrpc::answer(payload, move |request| async move {{ \
             handlers.{}(request).await }}),\n",
            method.proto_name, method.name
        ));
    }
    out.push_str("_ => crate::ttrpc::unknown_method(self.name, method),\n}\n}\n}\n");
}

fn write_client(service: &Service, name_constant: &str, out: &mut String) {
    let name = &service.name;
    out.push_str(&format!(
        "/// Calls a [`{name}`] on the other side of a connection.\n\
         #[derive(Clone, Debug)]\n\
         pub struct {name}Client {{ client: crate::ttrpc::Client, options: crate::ttrpc::CallOptions }}\n\
         impl {name}Client {{\n\
         /// A client over this connection: no deadline, no metadata.\n\
         pub fn new(client: crate::ttrpc::Client) -> Self {{\n\
         Self {{ client, options: crate::ttrpc::CallOptions::default() }}\n\
         }}\n\
         /// The same client with other options for its calls.\n\
         #[must_use]\n\
         pub fn with_options(&self, options: crate::ttrpc::CallOptions) -> Self {{\n\
         Self {{ client: self.client.clone(), options }}\n\
         }}\n\
         /// The connection.\n\
         pub fn connection(&self) -> &crate::ttrpc::Client {{ &self.client }}\n"
    ));
    for method in &service.methods {
        write_method_comments(method, out);
        out.push_str(&format!(
            "pub async fn {}(&self, request: {}) -> \
             ::core::result::Result<{}, crate::ttrpc::Status> {{\n\
             self.client.unary({name_constant}, \"{}\", &request, &self.options).await\n}}\n",
            method.name, method.input_type, method.output_type, method.proto_name
        ));
    }
    out.push_str("}\n");
}

fn write_method_comments(method: &Method, out: &mut String) {
    let fallback = format!("Calls `{}`.", method.proto_name);
    write_comments(&method.comments, &fallback, out);
}

/// The .proto file's own comments as documentation, or `fallback` where it has none.
fn write_comments(comments: &Comments, fallback: &str, out: &mut String) {
    if comments.leading.is_empty() {
        out.push_str(&format!("/// {fallback}\n"));
    } else {
        comments.append_with_indent(0, out);
    }
}
