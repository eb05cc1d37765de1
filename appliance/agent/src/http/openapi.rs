//! `GET /v1/openapi.json`: the API in the form that other programs read (OpenAPI 3.1). It is made of the same rows as the router, so
//! that a route cannot be without its place here.

use std::{collections::BTreeMap, sync::LazyLock};

use axum::{
    body::Bytes,
    extract::DefaultBodyLimit,
    handler::Handler,
    http::header,
    response::IntoResponse,
    routing::{MethodFilter, MethodRouter, on},
};
use rebec_api::{ApiError, job::Job};
use rebec_book::{authority::Command, record::Kind};
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{
        ComponentsBuilder, ContentBuilder, InfoBuilder, OpenApi, OpenApiBuilder, PathsBuilder, Ref, RefOr, Required, ResponseBuilder,
        Schema,
        path::{HttpMethod, OperationBuilder, ParameterBuilder, ParameterIn, PathItem},
        request_body::RequestBodyBuilder,
        schema::{ArrayBuilder, ObjectBuilder, Type},
        security::{Http, HttpAuthScheme, SecurityRequirement, SecurityScheme},
    },
};

use super::{rights::About, table};
use crate::agent::Agent;

/// What requests carry over TCP.
const BEARER: &str = "token";
/// A file, or bytes that are no JSON.
const BYTES: &str = "application/octet-stream";

/// State of all handlers.
type Shared = std::sync::Arc<Agent>;

/// One request of the API: its route, and its place in the document.
pub struct Row {
    /// What it asks for: who may is judged before the handler hears of it.
    pub command: Command,
    /// What that is about.
    pub about: About,
    /// With braces around what is a name.
    pub path: &'static str,
    /// One of those that the path takes.
    pub method: HttpMethod,
    /// Who answers.
    pub handler: MethodRouter<Shared>,
    summary: &'static str,
    query: Vec<(&'static str, &'static str, Type)>,
    takes: Option<Said>,
    status: u16,
    answers: Option<Said>,
    schemas: Vec<(String, RefOr<Schema>)>,
}

/// The form of a body.
struct Said {
    content_type: &'static str,
    schema: RefOr<Schema>,
}

/// A row without bodies.
pub fn row<H: Handler<T, Shared>, T: 'static>(
    command: Command,
    method: HttpMethod,
    path: &'static str,
    summary: &'static str,
    handler: H,
) -> Row {
    let filter = match method {
        HttpMethod::Post => MethodFilter::POST,
        HttpMethod::Put => MethodFilter::PUT,
        HttpMethod::Delete => MethodFilter::DELETE,
        _ => MethodFilter::GET,
    };
    let handler = on(filter, handler);
    Row {
        command,
        about: About::Nothing,
        path,
        method,
        handler,
        summary,
        query: vec![],
        takes: None,
        status: 200,
        answers: None,
        schemas: vec![],
    }
}

impl Row {
    /// Its path's first name is of a thing of this kind.
    pub fn about(self, kind: Kind) -> Self {
        Self { about: About::Thing(kind), ..self }
    }

    /// Its body is JSON of this type.
    pub fn takes<T: ToSchema>(mut self) -> Self {
        let schema = self.reference::<T>();
        self.takes = Some(Said { content_type: "application/json", schema });
        self
    }

    /// Its body is a file of any length.
    pub fn takes_file(mut self) -> Self {
        self.takes = Some(Said { content_type: BYTES, schema: text() });
        self.handler = self.handler.layer(DefaultBodyLimit::disable());
        self
    }

    /// Its answer is JSON of this type.
    pub fn answers<T: ToSchema>(mut self) -> Self {
        let schema = self.reference::<T>();
        self.answers = Some(Said { content_type: "application/json", schema });
        self
    }

    /// Its answer is a list of this type.
    pub fn lists<T: ToSchema>(mut self) -> Self {
        let schema = ArrayBuilder::new().items(self.reference::<T>()).into();
        self.answers = Some(Said { content_type: "application/json", schema });
        self
    }

    /// Its answer is a job that has begun.
    pub fn begins_job(self) -> Self {
        Self { status: 202, ..self.answers::<Job>() }
    }

    /// Its answer is something else than JSON.
    pub fn streams(self, content_type: &'static str) -> Self {
        Self { answers: Some(Said { content_type, schema: text() }), ..self }
    }

    /// The connection becomes a stream of raw bytes.
    pub fn upgrades(self) -> Self {
        Self { status: 101, ..self }
    }

    /// Takes this in its query.
    pub fn query(mut self, name: &'static str, what: &'static str, kind: Type) -> Self {
        self.query.push((name, what, kind));
        self
    }

    fn reference<T: ToSchema>(&mut self) -> RefOr<Schema> {
        T::schemas(&mut self.schemas);
        self.schemas.push((T::name().into_owned(), T::schema()));
        Ref::from_schema_name(T::name()).into()
    }

    fn operation(&self) -> OperationBuilder {
        let answer = ResponseBuilder::new().description(match self.status {
            101 => "Switching protocols: raw bytes both ways (`Upgrade: rebec-stream`)",
            202 => "It has begun: a job to follow",
            _ => "Done",
        });
        let answer = match &self.answers {
            Some(said) => answer.content(said.content_type, content(said)),
            None => answer,
        };
        let error = Said { content_type: "application/json", schema: Ref::from_schema_name(ApiError::name()).into() };
        let refusal = ResponseBuilder::new().description("A refusal and its reason").content(error.content_type, content(&error));
        let mut operation = OperationBuilder::new()
            .summary(Some(self.summary))
            .response(self.status.to_string(), answer.build())
            .response("default", refusal.build());
        for name in self.path.split('/').filter_map(|segment| segment.strip_prefix('{')?.strip_suffix('}')) {
            let parameter = ParameterBuilder::new().name(name).parameter_in(ParameterIn::Path).required(Required::True);
            operation = operation.parameter(parameter.schema(Some(text())));
        }
        for (name, what, kind) in &self.query {
            let parameter = ParameterBuilder::new().name(*name).parameter_in(ParameterIn::Query).required(Required::False);
            let schema: RefOr<Schema> = ObjectBuilder::new().schema_type(kind.clone()).into();
            operation = operation.parameter(parameter.description(Some(*what)).schema(Some(schema)));
        }
        let body = self
            .takes
            .as_ref()
            .map(|said| RequestBodyBuilder::new().required(Some(Required::True)).content(said.content_type, content(said)));
        operation.request_body(body.map(RequestBodyBuilder::build))
    }
}

fn content(said: &Said) -> utoipa::openapi::Content {
    ContentBuilder::new().schema(Some(said.schema.clone())).build()
}

fn text() -> RefOr<Schema> {
    ObjectBuilder::new().schema_type(Type::String).into()
}

/// The document of these rows.
fn document(rows: &[Row]) -> OpenApi {
    let mut items: BTreeMap<&str, PathItem> = BTreeMap::new();
    let mut schemas: BTreeMap<String, RefOr<Schema>> = rows.iter().flat_map(|row| row.schemas.clone()).collect();
    let mut errors = vec![(ApiError::name().into_owned(), ApiError::schema())];
    ApiError::schemas(&mut errors);
    schemas.extend(errors);
    for row in rows {
        let item = PathItem::new(row.method.clone(), row.operation());
        match items.get_mut(row.path) {
            Some(known) => known.merge_operations(item),
            None => drop(items.insert(row.path, item)),
        }
    }
    let paths = items.into_iter().fold(PathsBuilder::new(), |paths, (path, item)| paths.path(path, item));
    let about = "On the host's Unix socket, and on TCP with TLS 1.3 under the host's key, where each request carries a token, or a user's signature \
                 in the header `rebec-warrant` (docs/formats/authority.md).";
    let bearer = SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer));
    OpenApiBuilder::new()
        .info(InfoBuilder::new().title("Rebec").version(env!("CARGO_PKG_VERSION")).description(Some(about)).build())
        .paths(paths)
        .components(Some(ComponentsBuilder::new().schemas_from_iter(schemas).security_scheme(BEARER, bearer).build()))
        .security(Some([SecurityRequirement::new(BEARER, Vec::<String>::new())]))
        .build()
}

/// `GET /v1/openapi.json`
pub async fn show() -> impl IntoResponse {
    static TEXT: LazyLock<Bytes> = LazyLock::new(|| serde_json::to_vec(&document(&table::rows())).unwrap_or_default().into());
    ([(header::CONTENT_TYPE, "application/json")], TEXT.clone())
}
