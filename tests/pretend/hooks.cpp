// What a CPU build of torch lacks to run autograd and autocast on tensors that say "cuda": a device guard and the CUDA hooks.
// Nothing is computed here. While the switch is off, all answers are those of a build without CUDA.
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

namespace {

constexpr c10::DeviceIndex kDevices = 2;
bool switched_on = false;
thread_local c10::DeviceIndex current = 0;

c10::DeviceIndex exchange(c10::DeviceIndex wanted) {
  const auto before = current;
  if (wanted >= 0)
    current = wanted;
  return before;
}

struct Guard final : c10::impl::NoOpDeviceGuardImpl<c10::DeviceType::CUDA> {
  static c10::Device device(c10::DeviceIndex index) {
    return {c10::DeviceType::CUDA, index};
  }
  static c10::Stream stream(c10::Device d) {
    return c10::Stream(c10::Stream::DEFAULT, device(d.has_index() ? d.index() : current));
  }
  c10::Device getDevice() const override { return device(current); }
  c10::Device exchangeDevice(c10::Device d) const override { return device(exchange(d.index())); }
  void setDevice(c10::Device d) const override { exchange(d.index()); }
  void uncheckedSetDevice(c10::Device d) const noexcept override { exchange(d.index()); }
  c10::DeviceIndex deviceCount() const noexcept override { return switched_on ? kDevices : 0; }
  c10::Stream getStream(c10::Device d) const noexcept override { return stream(d); }
  c10::Stream getDefaultStream(c10::Device d) const override { return stream(d); }
  c10::Stream getNewStream(c10::Device d, int) const override { return stream(d); }
  c10::Stream exchangeStream(c10::Stream s) const noexcept override { return stream(s.device()); }
  void record(void**, const c10::Stream&, const c10::DeviceIndex, const c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
};

struct Hooks final : at::CUDAHooksInterface {
  explicit Hooks(at::CUDAHooksArgs) {}
  void init() const override {}
  bool hasCUDA() const override { return switched_on; }
  bool isBuilt() const override { return switched_on; }
  bool isAvailable() const override { return switched_on; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return switched_on; }
  c10::DeviceIndex deviceCount() const override { return switched_on ? kDevices : 0; }
  int getNumGPUs() const override { return switched_on ? kDevices : 0; }
  c10::DeviceIndex current_device() const override { return current; }
  c10::DeviceIndex getCurrentDevice() const override { return current; }
  void setCurrentDevice(c10::DeviceIndex index) const override { exchange(index); }
  c10::DeviceIndex exchangeDevice(c10::DeviceIndex index) const override { return exchange(index); }
  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex index) const override { return exchange(index); }
};

const bool registered = [] {
  c10::impl::registerDeviceGuard(c10::DeviceType::CUDA, new Guard);
  return true;
}();

} // namespace

namespace at {
using at::CUDAHooksRegistry;
C10_REGISTER_TYPED_CLASS(CUDAHooksRegistry, "CUDAHooks", Hooks)
} // namespace at

extern "C" void pretend_cuda(int on) {
  switched_on = on != 0;
}
// whether torch asks these hooks; it keeps the first it finds for good
extern "C" int pretend_cuda_heard() {
  return dynamic_cast<const Hooks*>(&at::detail::getCUDAHooks()) != nullptr;
}
