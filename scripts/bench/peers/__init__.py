"""The same work in other servers, each in an environment of its own: no dependencies of ours."""
