// Takes out of texts and objects what must not leave a cluster: private keys, tokens, passwords, environment
// values. By form and by name, so it errs on the side of taking out; what an operator wrote in plain words it
// cannot know. Pure; hostile input.
#pragma once

#include <string>
#include <string_view>

#include <nlohmann/json.hpp>

namespace nodemesh::ctl {

// PEM private keys (raw, in JSON, and base64 of any PEM), JWTs, what follows "Bearer ", and the value of
// NAME=value, or "NAME": "value", where NAME ends like a secret's.
std::string scrub(std::string_view text);

// An object of the API server or of an agent: every string by scrub(), the values of environment variables,
// string members named like secrets, the
// value beside such a name, managedFields and kubectl's last-applied copy. A Secret loses its data.
void scrub_object(nlohmann::json& object);

// A Pod of an application: where it is, how it is, its ports and what kubelet asks of it; not what it is told
// or says.
nlohmann::json pod_outline(const nlohmann::json& pod);

}  // namespace nodemesh::ctl
