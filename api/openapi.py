"""The interface as OpenAPI 3.1. Schemas come from the contract's own types; a test holds the
routes, statuses and bodies of the running service against this document."""

from typing import Any

import msgspec

from api.accounts import Account
from api.consent import Selections, State
from api.images import MEDIA_TYPES
from api.notice import Notice
from api.rights import Changes, Held, Objections, Receipt
from api.upload import SEALED_TYPE
from jobs import __version__, contract, formats
from jobs.usage import Counts

Json = dict[str, Any]

_REF = "#/components/schemas/{name}"
_types = [contract.Request, contract.Annotated, contract.Embedded, contract.ModelInfo]
_privacy_types = [Notice, State, Selections]
_rights_types = [Account, Held, Changes, Objections, Receipt]
_shown, _schemas = msgspec.json.schema_components(
    [*_types, *_privacy_types, *_rights_types], ref_template=_REF
)
_request, _annotated, _embedded, _model, _notice, _consent, _selections = _shown[:7]
_account, _held, _changes, _objections, _receipt = _shown[7:]

_PROBLEM = {
    "type": "object",
    "required": ["type", "title", "status", "code", "detail"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "code": {"type": "string", "description": "stable name to match on"},
        "detail": {"type": "string", "description": "what is wrong and what to do"},
    },
}
_STATE = {
    "type": "object",
    "required": ["id", "status"],
    "properties": {
        "id": {"type": "string", "pattern": "^[0-9a-f]{32}$"},
        "token": {"type": "string", "description": "shown once, to whoever submitted"},
        "status": {"enum": ["queued", "running", "done", "pending"]},
        "position": {"type": "integer", "minimum": 0, "description": "jobs ahead in the queue"},
        "expires_at": {"type": "string", "format": "date-time"},
        "links": {"type": "object", "additionalProperties": {"type": "string"}},
    },
}
_MODELS = {
    "type": "object",
    "required": ["default", "models"],
    "properties": {"default": {"type": "string"}, "models": {"type": "array", "items": _model}},
}
_INFO = {
    "type": "object",
    "required": [
        "version",
        "limits",
        "retention",
        "transport",
        "guard",
        "formats",
        "api_key_required",
        "sealing_key",
    ],
}
_DAY = {"type": "string", "format": "date"}
_USAGE = {
    "type": "object",
    "required": ["since", "until", "usage"],
    "properties": {
        "since": _DAY,
        "until": _DAY,
        "usage": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["day", "model", "outcome", *Counts._fields],
                "additionalProperties": False,
                "properties": {
                    "day": _DAY,
                    "model": {"type": "string"},
                    "outcome": {"type": "string", "description": "annotated, or a problem's code"},
                    **{name: {"type": "integer", "minimum": 0} for name in Counts._fields},
                },
            },
        },
    },
}
_HEALTH = {"type": "object", "required": ["status"]}

_REASONS = {
    400: "malformed; the code says what",
    401: "a key or token is wanted",
    403: "not allowed, or it came in the clear; the code says why",
    404: "no such job for this token",
    408: "the upload took too long",
    409: "leased to another reader",
    410: "delivered, erased or expired; nothing is left",
    413: "too many bytes, pixels or images",
    415: "not an allowed image or media type",
    422: "the prompt, image or model does not fit, or the job failed",
    429: "limit used up; RateLimit-* and Retry-After say when it goes on",
    500: "the fault is on our side",
    503: "queue full, or the store does not answer",
}


def _json(schema: Json, description: str) -> Json:
    return {"description": description, **_content(schema)}


def _content(schema: Json) -> Json:
    return {"content": {"application/json": {"schema": schema}}}


def _problems(*statuses: int) -> Json:
    content = {"application/problem+json": {"schema": {"$ref": _REF.format(name="Problem")}}}
    return {
        str(status): {"description": _REASONS[status], "content": content} for status in statuses
    }


def _parameter(place: str, name: str, schema: Json, description: str, **more: Any) -> Json:
    return {"in": place, "name": name, "schema": schema, "description": description, **more}


_STATE_REF = {"$ref": _REF.format(name="JobState")}
_ID = _parameter("path", "id", {"type": "string"}, "the job's id", required=True)
_WAIT = _parameter(
    "query", "wait", {"type": "number", "minimum": 0, "maximum": 30}, "seconds to wait for it"
)
_FORMAT = _parameter(
    "query", "format", {"enum": list(formats.FORMATS), "default": "mayfly"}, "how to write it"
)
_READER = _parameter(
    "header",
    "Idempotency-Key",
    {"type": "string", "maxLength": 255},
    "lease the result to this key; it stays until the same key acknowledges with DELETE",
)
_OWNED: Json = {"security": [{"token": []}]}
_NAME = {"type": "string", "maxLength": 100}
_SEALED = {
    "type": "string",
    "contentMediaType": SEALED_TYPE,
    "description": "HPKE ciphertext that only the client and the workers can open; docs/sealed.md",
}
_WRITTEN: Json = {
    "description": "the result in the format",
    "content": {
        form.media_type.partition(";")[0]: {"schema": {"type": "string"}}
        for form in formats.FORMATS.values()
    }
    | {"application/json": {"schema": {"anyOf": [_annotated, _embedded, {}]}}},
}
_RESULT: Json = {
    "description": "the result; it is deleted, or leased if Idempotency-Key was sent",
    # sealed if the submission was sealed by its client
    "content": {**_WRITTEN["content"], SEALED_TYPE: {"schema": _SEALED}},
}
_IMAGE = {"type": "string", "contentMediaType": "image/*"}

DOCUMENT: Json = {
    "openapi": "3.1.0",
    "info": {
        "title": "Mayfly",
        "version": __version__,
        "summary": "Send an image, say what to look for, get the annotations; nothing stays.",
    },
    "paths": {
        "/v1/jobs": {
            "post": {
                "summary": "Submit an image",
                "description": "With the header Prefer: wait=30 the answer is the result itself "
                "if it is ready in time. A token that you bring makes the request safe to repeat. "
                "Mayfly-Notice: new tells an account once that the privacy notice is new to it.",
                "security": [{}, {"account": []}, {"token": []}],
                "parameters": [
                    {
                        "in": "query",
                        "name": "request",
                        "content": {"application/json": {"schema": _request}},
                        "description": "the request as JSON, when the body is the image; what "
                        "makes the address longer than 64 kB needs a form",
                    },
                    _parameter("query", "model", _NAME, "of a sealed payload: its model"),
                    _parameter("query", "key", _NAME, "of a sealed payload: the sealing key's id"),
                    _parameter(
                        "query",
                        "priority",
                        {"enum": ["interactive", "bulk"]},
                        "of a sealed payload: its place in the queue",
                    ),
                    _FORMAT,
                    _READER,
                    _parameter("header", "Prefer", {"type": "string"}, "wait=s, RFC 7240"),
                ],
                "requestBody": {
                    "required": True,
                    "content": {
                        **{media_type: {"schema": _IMAGE} for media_type in MEDIA_TYPES},
                        SEALED_TYPE: {"schema": _SEALED},
                        "multipart/form-data": {
                            "schema": {
                                "type": "object",
                                "required": [contract.MAIN_IMAGE],
                                "properties": {"request": _request, contract.MAIN_IMAGE: _IMAGE},
                                "additionalProperties": _IMAGE,
                            }
                        },
                    },
                },
                "responses": {
                    "200": _RESULT,
                    "202": _json(_STATE_REF, "accepted; poll the links with the token"),
                    **_problems(400, 401, 403, 408, 409, 410, 413, 415, 422, 429, 500, 503),
                },
            }
        },
        "/v1/jobs/{id}": {
            "get": {
                "summary": "A job's state",
                **_OWNED,
                "parameters": [_ID, _WAIT],
                "responses": {
                    "200": _json(_STATE_REF, "where it is"),
                    **_problems(400, 401, 403, 404, 410, 503),
                },
            },
            "delete": {
                "summary": "Acknowledge, cancel or erase",
                **_OWNED,
                "parameters": [_ID, _READER],
                "responses": {
                    "204": {"description": "nothing of it is left"},
                    **_problems(400, 401, 403, 404, 409, 503),
                },
            },
        },
        "/v1/jobs/{id}/result": {
            "get": {
                "summary": "Fetch the result, once",
                **_OWNED,
                "parameters": [_ID, _WAIT, _FORMAT, _READER],
                "responses": {
                    "200": _RESULT,
                    "202": _json(_STATE_REF, "not ready; ask again"),
                    **_problems(400, 401, 403, 404, 409, 410, 413, 415, 422, 500, 503),
                },
            }
        },
        "/v1/jobs/{id}/events": {
            "get": {
                "summary": "Follow a job by server-sent events",
                **_OWNED,
                "parameters": [_ID],
                "responses": {
                    "200": {
                        "description": "`status` events until the job is over",
                        "content": {"text/event-stream": {}},
                    },
                    **_problems(401, 403, 404, 410, 503),
                },
            }
        },
        "/v1/convert": {
            "post": {
                "summary": "Write a result that you have in another format",
                "description": "Of finds that were corrected, for example. Nothing is kept.",
                "security": [{}, {"account": []}],
                "parameters": [
                    _FORMAT,
                    _parameter(
                        "query", "name", {"type": "string", "maxLength": 255}, "of the image file"
                    ),
                ],
                "requestBody": {"required": True, **_content(_annotated)},
                "responses": {
                    "200": _WRITTEN,
                    **_problems(400, 401, 403, 408, 413, 415, 422, 429, 503),
                },
            }
        },
        "/v1/models": {
            "get": {
                "summary": "What can be asked for",
                "responses": {"200": _json(_MODELS, "the served models"), **_problems(403)},
            }
        },
        "/v1/info": {
            "get": {
                "summary": "Version, limits, retention",
                "responses": {"200": _json(_INFO, "as configured here"), **_problems(403)},
            }
        },
        "/v1/privacy/notice": {
            "get": {
                "summary": "The privacy notice",
                "parameters": [
                    _parameter("query", "lang", {"type": "string"}, "en, de or zh, for example")
                ],
                "responses": {
                    "200": _json(_notice, "with the periods that apply here"),
                    **_problems(403),
                },
            }
        },
        "/v1/privacy/consent": {
            "get": {
                "summary": "What a visitor agreed to keep in their browser",
                "responses": {
                    "200": _json(_consent, "what the cookie holds, if there is one"),
                    **_problems(403),
                },
            },
            "put": {
                "summary": "Agree to one cookie with selections, or change them",
                "description": "Global Privacy Control and Do Not Track count as a no.",
                "requestBody": {"required": True, **_content(_selections)},
                "responses": {
                    "200": _json(_consent, "kept in the cookie that comes with the answer"),
                    **_problems(400, 403, 408, 413, 415, 422),
                },
            },
            "delete": {
                "summary": "Withdraw: the cookie is deleted",
                "responses": {"204": {"description": "it is"}, **_problems(403)},
            },
        },
        "/v1/privacy/data": {
            "get": {
                "summary": "What is held about you, to take along",
                "description": "With a key: the account's record, its keys and live jobs. With or "
                "without: the log lines of the address that asks, and what the cookie says.",
                "security": [{}, {"account": []}],
                "responses": {
                    "200": _json(_held, "all of it"),
                    **_problems(401, 403, 429, 503),
                },
            },
            "patch": {
                "summary": "Correct the account's record",
                "security": [{"account": []}],
                "requestBody": {"required": True, **_content(_changes)},
                "responses": {
                    "200": _json(_account, "the record as it is now"),
                    **_problems(400, 401, 403, 408, 413, 415, 422, 429, 503),
                },
            },
            "delete": {
                "summary": "Erase it",
                "description": "Jobs and account are those of the key, log lines those of the "
                "address that asks; with the consent the cookie goes, too.",
                "security": [{}, {"account": []}],
                "parameters": [
                    _parameter(
                        "query",
                        "what",
                        {"type": "string", "default": "jobs,logs,consent"},
                        "any of jobs, logs, consent, account, comma-separated",
                    )
                ],
                "responses": {
                    "200": _json(_receipt, "a receipt that says how much it was"),
                    **_problems(400, 401, 403, 429, 503),
                },
            },
        },
        "/v1/privacy/objections": {
            "put": {
                "summary": "Object to statistics or to being named in logs",
                "description": "Binds from then on for all requests with a key of the account.",
                "security": [{"account": []}],
                "requestBody": {"required": True, **_content(_objections)},
                "responses": {
                    "200": _json(_account, "the record as it is now"),
                    **_problems(400, 401, 403, 408, 413, 415, 422, 429, 503),
                },
            }
        },
        "/v1/usage": {
            "get": {
                "summary": "Usage statistics",
                "description": "For the operator: a key of that scope, or, as long as there is "
                "none, any request from the machine itself. Sums by day (UTC), model and outcome; "
                "times are summed over the jobs. Nothing in it is about a person or an image.",
                "security": [{}, {"account": []}],
                "parameters": [
                    _parameter("query", "since", _DAY, "first day; 29 days before the last"),
                    _parameter("query", "until", _DAY, "last day; today"),
                    _parameter("query", "format", {"enum": ["json", "csv"]}, "how to write it"),
                ],
                "responses": {
                    "200": {
                        "description": "the counts",
                        "content": {
                            "application/json": {"schema": _USAGE},
                            "text/csv": {"schema": {"type": "string"}},
                        },
                    },
                    **_problems(400, 401, 403, 503),
                },
            }
        },
        "/healthz": {
            "get": {
                "summary": "The process is up",
                "responses": {"200": _json(_HEALTH, "it is")},
            }
        },
        "/readyz": {
            "get": {
                "summary": "Jobs can be accepted and answered",
                "responses": {"200": _json(_HEALTH, "they can"), **_problems(503)},
            }
        },
        "/metrics": {
            "get": {
                "summary": "Counters for Prometheus",
                "responses": {
                    "200": {
                        "description": "text format",
                        "content": {"text/plain": {"schema": {"type": "string"}}},
                    }
                },
            }
        },
    },
    "components": {
        "schemas": {**_schemas, "Problem": _PROBLEM, "JobState": _STATE},
        "securitySchemes": {
            "token": {
                "type": "http",
                "scheme": "bearer",
                "description": "a job's capability: 32 bytes as base64url",
            },
            "account": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
        },
    },
}
