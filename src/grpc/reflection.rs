//! The responses of server reflection: which services there are, and the descriptors of their files
//! (grpc/grpc, doc/server-reflection.md).
//!
//! Pure: a request in, a response out. Both versions of the protocol use the same bytes. Nothing
//! here depends on the client.

use std::collections::HashMap;
use std::sync::OnceLock;

use prost_types::{DescriptorProto, FileDescriptorProto, FileDescriptorSet};

use super::messages::reflection::server_reflection_request::MessageRequest as Question;
use super::messages::reflection::server_reflection_response::MessageResponse as Answer;
use super::messages::reflection::{
    ErrorResponse, ExtensionNumberResponse, FileDescriptorResponse, ListServiceResponse,
    ServerReflectionRequest, ServerReflectionResponse, ServiceResponse,
};
use super::messages::{DESCRIPTORS, Message};

const INVALID_ARGUMENT: i32 = 3;
const NOT_FOUND: i32 = 5;

/// Responds to one request. If it cannot be served, the response contains an error.
pub fn answer(asked: ServerReflectionRequest) -> ServerReflectionResponse {
    let schema = Schema::own();
    let answer = match &asked.message_request {
        Some(Question::ListServices(_)) => schema.services(),
        Some(Question::FileByFilename(name)) => schema.file(schema.names.get(name), name),
        Some(Question::FileContainingSymbol(name)) => schema.file(schema.symbols.get(name), name),
        Some(Question::AllExtensionNumbersOfType(name)) if schema.symbols.contains_key(name) => {
            // Our schema has no extensions.
            Answer::AllExtensionNumbersResponse(ExtensionNumberResponse {
                base_type_name: name.clone(),
                extension_number: Vec::new(),
            })
        }
        Some(Question::AllExtensionNumbersOfType(name)) => not_found(name),
        Some(Question::FileContainingExtension(extension)) => not_found(&extension.containing_type),
        None => error(
            INVALID_ARGUMENT,
            "the request has no question; set one field of `message_request`",
        ),
    };
    ServerReflectionResponse {
        valid_host: asked.host.clone(),
        original_request: Some(asked),
        message_response: Some(answer),
    }
}

/// All files, and an index of their symbols.
struct Schema {
    files: Vec<File>,
    names: HashMap<String, usize>,
    /// By fully qualified name: services, methods, messages, enums.
    symbols: HashMap<String, usize>,
    services: Vec<String>,
}

struct File {
    /// A `google.protobuf.FileDescriptorProto`.
    bytes: Vec<u8>,
    imports: Vec<String>,
}

impl Schema {
    /// Returns our own schema, built when the first client asks.
    fn own() -> &'static Schema {
        static OWN: OnceLock<Schema> = OnceLock::new();
        OWN.get_or_init(|| {
            let set = FileDescriptorSet::decode(DESCRIPTORS);
            // The build wrote it, and a test reads it.
            debug_assert!(set.is_ok());
            Schema::of(set.unwrap_or_default())
        })
    }

    fn of(set: FileDescriptorSet) -> Schema {
        let mut schema = Schema {
            files: Vec::new(),
            names: HashMap::new(),
            symbols: HashMap::new(),
            services: Vec::new(),
        };
        for file in set.file {
            schema.add(file);
        }
        schema
    }

    fn add(&mut self, file: FileDescriptorProto) {
        let index = self.files.len();
        let package = file.package().to_owned();
        self.names.insert(file.name().to_owned(), index);
        for message in &file.message_type {
            self.add_message(index, &package, message);
        }
        for of_enum in &file.enum_type {
            self.symbols
                .insert(qualified(&package, of_enum.name()), index);
        }
        for service in &file.service {
            let name = qualified(&package, service.name());
            for method in &service.method {
                self.symbols.insert(qualified(&name, method.name()), index);
            }
            self.symbols.insert(name.clone(), index);
            self.services.push(name);
        }
        self.files.push(File {
            bytes: file.encode_to_vec(),
            imports: file.dependency,
        });
    }

    /// Adds a message and its nested ones, as deeply as our schema nests.
    fn add_message(&mut self, index: usize, scope: &str, message: &DescriptorProto) {
        let name = qualified(scope, message.name());
        for nested in &message.nested_type {
            self.add_message(index, &name, nested);
        }
        for of_enum in &message.enum_type {
            self.symbols.insert(qualified(&name, of_enum.name()), index);
        }
        self.symbols.insert(name, index);
    }

    fn services(&self) -> Answer {
        let service = self
            .services
            .iter()
            .map(|name| ServiceResponse { name: name.clone() })
            .collect();
        Answer::ListServicesResponse(ListServiceResponse { service })
    }

    /// Returns a file and all that it imports, each once.
    fn file(&self, index: Option<&usize>, asked: &str) -> Answer {
        let Some(&index) = index else {
            return not_found(asked);
        };
        let mut found = vec![index];
        let mut next = 0;
        while let Some(&index) = found.get(next) {
            let imports = self.files[index].imports.iter();
            for index in imports.filter_map(|name| self.names.get(name)) {
                if !found.contains(index) {
                    found.push(*index);
                }
            }
            next += 1;
        }
        let bytes = |index: &usize| self.files[*index].bytes.clone();
        Answer::FileDescriptorResponse(FileDescriptorResponse {
            file_descriptor_proto: found.iter().map(bytes).collect(),
        })
    }
}

fn qualified(scope: &str, name: &str) -> String {
    match scope {
        "" => name.to_owned(),
        _ => format!("{scope}.{name}"),
    }
}

fn not_found(name: &str) -> Answer {
    error(NOT_FOUND, &format!("unknown symbol or file `{name}`"))
}

fn error(code: i32, message: &str) -> Answer {
    Answer::ErrorResponse(ErrorResponse {
        error_code: code,
        error_message: message.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(question: Option<Question>) -> Answer {
        let asked = ServerReflectionRequest {
            host: "h".into(),
            message_request: question,
        };
        let answer = answer(asked.clone());
        assert_eq!(answer.valid_host, "h");
        assert_eq!(answer.original_request, Some(asked));
        answer.message_response.unwrap()
    }

    fn files(answer: Answer) -> Vec<String> {
        let Answer::FileDescriptorResponse(response) = answer else {
            panic!("{answer:?}");
        };
        let name = |bytes: &Vec<u8>| {
            let file = FileDescriptorProto::decode(&**bytes).unwrap();
            assert!(file.source_code_info.is_none());
            file.name().to_owned()
        };
        response.file_descriptor_proto.iter().map(name).collect()
    }

    #[test]
    fn every_service_is_listed() {
        let Answer::ListServicesResponse(list) = ask(Some(Question::ListServices("*".into())))
        else {
            panic!("no list");
        };
        let names: Vec<_> = list.service.iter().map(|service| &*service.name).collect();
        assert_eq!(
            names,
            [
                "AutoGLMService",
                "grpc.health.v1.Health",
                "grpc.reflection.v1.ServerReflection",
                "grpc.reflection.v1alpha.ServerReflection",
                "AutoGLMJobService",
            ]
        );
    }

    #[test]
    fn files_are_found_by_name_and_by_what_they_hold() {
        let by_name = |name: &str| files(ask(Some(Question::FileByFilename(name.into()))));
        assert_eq!(by_name("autoglm.proto"), ["autoglm.proto"]);
        assert_eq!(
            by_name("google/rpc/status.proto"),
            ["google/rpc/status.proto", "google/protobuf/any.proto"]
        );
        for symbol in [
            "AutoGLMService",
            "AutoGLMService.GenerateStream",
            "GenerateRequest",
            "FinishReason",
        ] {
            let found = files(ask(Some(Question::FileContainingSymbol(symbol.into()))));
            assert_eq!(found, ["autoglm.proto"], "{symbol}");
        }
        let nested = "grpc.health.v1.HealthCheckResponse.ServingStatus";
        let found = files(ask(Some(Question::FileContainingSymbol(nested.into()))));
        assert_eq!(found, ["grpc/health/v1/health.proto"]);
    }

    #[test]
    fn what_is_not_there_is_an_error_within_the_answer() {
        let unknown = "Nothing".to_owned();
        for (question, expected) in [
            (Some(Question::FileByFilename(unknown.clone())), NOT_FOUND),
            (
                Some(Question::FileContainingSymbol(unknown.clone())),
                NOT_FOUND,
            ),
            (
                Some(Question::AllExtensionNumbersOfType(unknown)),
                NOT_FOUND,
            ),
            (
                Some(Question::FileContainingExtension(Default::default())),
                NOT_FOUND,
            ),
            (None, INVALID_ARGUMENT),
        ] {
            let Answer::ErrorResponse(error) = ask(question) else {
                panic!("no error");
            };
            assert_eq!(error.error_code, expected);
        }
        let known = Question::AllExtensionNumbersOfType("GenerateRequest".into());
        assert!(matches!(
            ask(Some(known)),
            Answer::AllExtensionNumbersResponse(_)
        ));
    }
}
