#include "kube/objects.h"

#include <ranges>

#include "kube/fields.h"
#include "kube/yaml.h"

namespace nodemesh::kube {
namespace {

void read_metadata(Object& object, const Node* node) {
  Fields meta(node, object.problems);
  object.key.name = meta.text("name").value_or("");
  object.key.ns = meta.text("namespace").value_or("");
  object.uid = meta.text("uid").value_or("");
  if (const Node* version = meta.any("resourceVersion")) object.resource_version = version->text;
  if (const Node* created = meta.any("creationTimestamp")) object.creation_timestamp = created->text;
  object.labels = meta.text_map("labels");
  object.annotations = meta.text_map("annotations");
  for (const auto& item : meta.maps("ownerReferences")) {
    Fields owner(&item, object.problems);
    owner.ignore({"apiVersion", "uid", "blockOwnerDeletion"});
    object.owners.push_back({owner.text("kind").value_or(""), owner.text("name").value_or(""),
                             owner.boolean("controller").value_or(false)});
  }
  meta.ignore({"generateName", "generation", "deletionTimestamp", "deletionGracePeriodSeconds", "finalizers",
               "managedFields", "selfLink"});
  if (!object.key.ns.empty() && !is_dns_label(object.key.ns)) {
    meta.error("namespace", "is not a valid namespace name",
               "use lower-case letters, digits and '-', at most 63 characters");
  }
  if (!object.key.name.empty() && !is_dns_subdomain(object.key.name)) {
    meta.error("name", "is not a valid object name",
               "use lower-case letters, digits, '-' and '.', at most 253 characters");
  }
}

Problem with_file(Problem problem, const std::string& file) {
  problem.file = file;
  return problem;
}

// A kind ending in List with items stands for its items.
bool is_list(const Node& root) {
  const Node* kind = root.find("kind");
  const Node* items = root.find("items");
  return kind && kind->text.ends_with("List") && items && items->type == Node::Type::list;
}

void add_scalar(Node& map, std::string key, std::string text) {
  Node node{.type = Node::Type::string,
            .line = map.line,
            .column = map.column,
            .key = std::move(key),
            .text = std::move(text)};
  map.children.push_back(std::move(node));
}

void add_object(Manifest& out, Node root, const std::string& file) {
  auto object = std::make_shared<Object>(std::move(root), file);
  if (object->named) {
    out.objects.push_back(std::move(object));
    return;
  }
  for (auto& problem : object->problems) {
    if (problem.severity == Severity::error) out.problems.push_back(with_file(std::move(problem), file));
  }
}

// Items of a "PodList" may leave out what the list's own kind says.
void add_list(Manifest& out, Node root, const std::string& file) {
  std::string kind = root.find("kind")->text;
  kind.resize(kind.size() - 4);
  const Node* version = root.find("apiVersion");
  std::string api_version = version ? version->text : "";
  for (auto& child : root.children) {
    if (child.key != "items") continue;
    for (auto& item : child.children) {
      item.key.clear();
      if (item.type == Node::Type::map && !kind.empty() && !item.find("kind")) {
        add_scalar(item, "kind", kind);
        if (!item.find("apiVersion")) add_scalar(item, "apiVersion", api_version);
      }
      add_object(out, std::move(item), file);
    }
  }
}

}  // namespace

Object::Object(Node tree, std::string from) : file(std::move(from)), line(tree.line), root(std::move(tree)) {
  root.link();
  if (root.type != Node::Type::map) {
    report(problems, Severity::error, root, "the document is not a Kubernetes object",
           "start it with apiVersion, kind and metadata");
    return;
  }
  Problems rest;  // unknown top-level fields are the business of the kind's reader
  Fields top(&root, rest);
  auto api_version = top.text("apiVersion").value_or("");
  key.kind = top.text("kind").value_or("");
  if (key.kind.empty()) top.missing("kind", "write the object's kind, for example \"kind: Pod\"");
  if (api_version.empty()) top.missing("apiVersion", "write the API version, for example \"apiVersion: v1\"");
  const Node* metadata = top.map("metadata");
  if (metadata) read_metadata(*this, metadata);
  if (key.name.empty()) top.missing("metadata.name", "give the object a name");
  auto slash = api_version.find('/');
  key.group = slash == api_version.npos ? "" : api_version.substr(0, slash);
  version = slash == api_version.npos ? api_version : api_version.substr(slash + 1);
  named = !key.kind.empty() && !key.name.empty() && !api_version.empty();
  problems.insert(problems.end(), rest.begin(), rest.end());
}

model::Origin Object::origin(std::string section) const {
  return {key.kind, key.ns, key.name, std::move(section), file, line};
}

std::string_view Object::annotation(const std::string& name) const {
  auto found = annotations.find(name);
  return found == annotations.end() ? std::string_view{} : found->second;
}

std::string_view Object::label(const std::string& name) const {
  auto found = labels.find(name);
  return found == labels.end() ? std::string_view{} : found->second;
}

Manifest parse_manifest(std::string_view text, const std::string& file) {
  Manifest out;
  auto documents = parse_yaml(text, file);
  out.problems = std::move(documents.problems);
  for (auto& root : documents.roots) {
    if (is_list(root)) {
      add_list(out, std::move(root), file);
    } else {
      add_object(out, std::move(root), file);
    }
  }
  return out;
}

}  // namespace nodemesh::kube
