//! Calls that a kind of guest does not serve.

/// Implements calls of the API by refusing them: `MESSAGE => call(Request) -> Response; …`.
macro_rules! refuse {
    ($message:expr => $($call:ident($request:ty) -> $response:ty;)*) => {
        $(
            async fn $call(&self, _: $request) -> Result<$response, Status> {
                Err(Status::failed_precondition($message))
            }
        )*
    };
}
pub(crate) use refuse;
