#include "kube/source.h"

#include "kube/folder.h"

namespace nodemesh::kube {
namespace {

class FolderSource final : public Source {
 public:
  FolderSource(io::Reactor& reactor, std::string path, std::span<const Kind> kinds)
      : store_(kinds), folder_(reactor, std::move(path), store_, [this] { changed_(); }) {}

  Result<> start(Changed changed) override {
    changed_ = std::move(changed);
    auto started = folder_.start();
    synced_ = started.has_value();
    return started;
  }
  const Store& store() const override { return store_; }
  bool synced() const override { return synced_; }
  std::vector<std::string> troubles() const override {
    if (!synced_ || folder_.watching()) return {};
    return {"the config folder " + folder_.path() + " is gone; what was read from it stays in force"};
  }
  std::optional<Monotonic::duration> age() const override { return std::nullopt; }

 private:
  Store store_;
  Changed changed_;
  bool synced_ = false;
  Folder folder_;
};

}  // namespace

std::unique_ptr<Source> make_folder_source(io::Reactor& reactor, std::string path,
                                           std::span<const Kind> kinds) {
  return std::make_unique<FolderSource>(reactor, std::move(path), kinds);
}

std::string_view origin_name(Source::Origin origin) {
  static constexpr std::string_view kNames[] = {"folder", "api", "snapshot"};
  return kNames[static_cast<size_t>(origin)];
}

}  // namespace nodemesh::kube
