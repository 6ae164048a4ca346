//! The values that a fenced script takes and returns, which are those of the client library. The
//! layers above name them from here.

pub(crate) use fred::types::{FromValue, MultipleKeys, MultipleValues, Value};

use fred::error::{Error as FredError, ErrorKind};

use crate::error::ServerError;
use crate::store::FencedError;

/// What the client library reports.
pub(crate) type ClientError = FredError;

impl From<FredError> for ServerError {
    fn from(error: FredError) -> Self {
        Self::new(error)
    }
}

/// Checks that each argument can be sent. A null must not be: the server would close the
/// connection, which all guards share.
pub(crate) fn arguments<A>(args: A) -> Result<Vec<Value>, FencedError>
where
    A: TryInto<MultipleValues>,
    A::Error: Into<ClientError>,
{
    let args = args.try_into();
    let args: Value = args.map_err(|error| FencedError::Type(error.into().into()))?;
    let args = match args {
        Value::Null => return Ok(Vec::new()),
        Value::Array(args) => args,
        arg => vec![arg],
    };
    for (nth, arg) in args.iter().enumerate() {
        if !matches!(
            arg,
            Value::String(_)
                | Value::Bytes(_)
                | Value::Integer(_)
                | Value::Double(_)
                | Value::Boolean(_)
        ) {
            let details = format!("argument {} is of the type {:?}", nth + 1, arg.kind());
            let error = FredError::new(ErrorKind::InvalidArgument, details);
            return Err(FencedError::Type(error.into()));
        }
    }
    Ok(args)
}

/// Returns the keys as values.
pub(crate) fn keys(keys: impl Into<MultipleKeys>) -> Vec<Value> {
    let keys = keys.into().inner().into_iter();
    keys.map(Value::from).collect()
}

/// Converts the answer of a script.
pub(crate) fn convert<R: FromValue>(answer: Value) -> Result<R, FencedError> {
    answer
        .convert()
        .map_err(|error| FencedError::Type(error.into()))
}
