// SPDX-License-Identifier: MIT
#define FUSE_USE_VERSION 312
#include "front/loop/fuse_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <fuse3/fuse_log.h>
#include <fuse3/fuse_lowlevel.h>
#include <linux/falloc.h>
#include <linux/fuse.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <climits>
#include <cstdarg>
#include <cstdio>
#include <string_view>
#include <utility>

#include "base/log.h"
#include "front/loop/fuse_mount.h"

namespace vramswap {
namespace {

constexpr fuse_ino_t kFileInode = FUSE_ROOT_ID + 1;

/// Nothing but our own requests changes the file, so the kernel may remember names and attributes for ever.
constexpr double kForeverSeconds = 1e9;

/// Asynchronous requests in flight. The loop driver has 128 (hw_queue_depth), each of one or two FUSE
/// requests; the kernel's default of 12 (FUSE_DEFAULT_MAX_BACKGROUND in fs/fuse/inode.c) would hold them
/// back.
constexpr unsigned kMaxBackground = 256;

/// FUSE_NOTIFY_RESEND of include/uapi/linux/fuse.h, protocol 7.40, Linux 6.9: the kernel gives out again what
/// was read and not answered. Older headers lack it.
constexpr std::int32_t kNotifyResend = 7;

/// The kernel's own are even and begin at 2 (fuse_get_unique in fs/fuse/dev.c): it takes the answer for one
/// to a request that is gone, and libfuse expects that to happen.
constexpr std::uint64_t kReplayedUnique = 1;
/// The oldest protocol that we serve (Linux 5.8). libfuse looks at it to answer in the forms of before 7.23.
constexpr std::uint32_t kReplayedMinor = 31;

const FuseFile& file_of(fuse_req_t request) {
    return *static_cast<const FuseFile*>(fuse_req_userdata(request));
}

struct stat attributes_of(fuse_req_t request, fuse_ino_t inode) {
    struct stat attributes {};
    attributes.st_ino = inode;
    attributes.st_nlink = inode == kFileInode ? 1 : 2;
    attributes.st_mode = inode == kFileInode ? S_IFREG | 0600 : S_IFDIR | 0700;
    attributes.st_blksize = kPageBytes;
    if (inode == kFileInode) attributes.st_size = static_cast<off_t>(file_of(request).size().n);
    return attributes;
}

void reply_status(fuse_req_t request, IoStatus status) {
    if (status == IoStatus::retry)
        fuse_reply_none(request);  // frees it and tells the kernel nothing; see io_thread.h
    else
        fuse_reply_err(request, to_errno(status));
}

// The handlers. All but on_init run on the path of swap I/O: see the rules in io_thread.h.

void on_init(void*, fuse_conn_info* connection) {
    // Only this: without it, one request at a time for each worker of the loop driver. No splice (it needs
    // pipes and copies small requests slower), no writeback cache, no cached attributes to revalidate.
    connection->want = connection->capable & FUSE_CAP_ASYNC_DIO;
    connection->max_write = static_cast<unsigned>(kFuseTransferBytes);
    connection->max_readahead = 0;
    connection->max_background = kMaxBackground;
    connection->congestion_threshold = kMaxBackground;
}

void on_lookup(fuse_req_t request, fuse_ino_t parent, const char* name) {
    if (parent != FUSE_ROOT_ID || file_of(request).name() != name) {
        fuse_reply_err(request, ENOENT);
        return;
    }
    fuse_entry_param entry{};
    entry.ino = kFileInode;
    entry.attr = attributes_of(request, kFileInode);
    entry.attr_timeout = kForeverSeconds;
    entry.entry_timeout = kForeverSeconds;
    fuse_reply_entry(request, &entry);
}

void on_getattr(fuse_req_t request, fuse_ino_t inode, fuse_file_info*) {
    const struct stat attributes = attributes_of(request, inode);
    fuse_reply_attr(request, &attributes, kForeverSeconds);
}

void on_open(fuse_req_t request, fuse_ino_t, fuse_file_info*) {
    // The structure itself, as fuse_reply_open would send it: libfuse cannot name
    // FOPEN_PARALLEL_DIRECT_WRITES before 3.15. Without that flag (protocol 7.38, Linux 6.2, and
    // Debian's 6.1) writes go one at a time.
    fuse_open_out opened{};
    opened.open_flags = FOPEN_DIRECT_IO | FOPEN_PARALLEL_DIRECT_WRITES;
    std::array<char, sizeof opened> bytes{};
    __builtin_memcpy(bytes.data(), &opened, sizeof opened);
    fuse_reply_buf(request, bytes.data(), bytes.size());
}

void on_read(fuse_req_t request, fuse_ino_t, std::size_t bytes, off_t offset, fuse_file_info*) {
    IoThread& io = IoThread::current();
    const auto buffer = io.read_buffer();
    if (bytes > buffer.size()) {
        reply_status(request, IoStatus::out_of_range);
        return;
    }
    const IoStatus status = io.read(static_cast<std::uint64_t>(offset), bytes);
    if (status == IoStatus::ok)
        fuse_reply_buf(request, reinterpret_cast<const char*>(buffer.data()), bytes);
    else
        reply_status(request, status);
}

void on_write(fuse_req_t request, fuse_ino_t, const char* data, std::size_t bytes, off_t offset,
              fuse_file_info*) {
    // libfuse's const is a promise to the handler's reader only: the bytes lie in this thread's own buffer.
    std::span<std::byte> payload(reinterpret_cast<std::byte*>(const_cast<char*>(data)), bytes);
    const IoStatus status = IoThread::current().write(static_cast<std::uint64_t>(offset), payload);
    if (status == IoStatus::ok)
        fuse_reply_write(request, bytes);
    else
        reply_status(request, status);
}

void on_fallocate(fuse_req_t request, fuse_ino_t, int mode, off_t offset, off_t bytes, fuse_file_info*) {
    // The loop driver turns DISCARD into PUNCH_HOLE and WRITE_ZEROES into either. To us they are the same:
    // what was discarded reads as zeros and takes no room.
    if (mode != (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE) &&
        mode != (FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE)) {
        fuse_reply_err(request, EOPNOTSUPP);
        return;
    }
    reply_status(request, IoThread::current().discard(static_cast<std::uint64_t>(offset),
                                                      static_cast<std::uint64_t>(bytes)));
}

void on_fsync(fuse_req_t request, fuse_ino_t, int, fuse_file_info*) {
    // VRAM is no more durable after a flush than before.
    fuse_reply_err(request, 0);
}

void on_release(fuse_req_t request, fuse_ino_t, fuse_file_info*) {
    fuse_reply_err(request, 0);
}

void on_statfs(fuse_req_t request, fuse_ino_t) {
    struct statvfs info {};
    info.f_bsize = kPageBytes;  // the loop driver takes this as its discard granularity
    info.f_frsize = kPageBytes;
    info.f_blocks = file_of(request).size().n / kPageBytes;
    info.f_namemax = NAME_MAX;
    fuse_reply_statfs(request, &info);
}

constexpr fuse_lowlevel_ops make_operations() {
    fuse_lowlevel_ops ops{};
    ops.init = on_init;
    ops.lookup = on_lookup;
    ops.getattr = on_getattr;
    ops.open = on_open;
    ops.read = on_read;
    ops.write = on_write;
    ops.release = on_release;
    ops.fsync = on_fsync;
    ops.statfs = on_statfs;
    ops.fallocate = on_fallocate;
    return ops;
}
constexpr fuse_lowlevel_ops kOperations = make_operations();

/// Where libfuse's messages go; it would print them to standard error.
void log_from_libfuse(fuse_log_level, const char* format, va_list arguments) {
    if (IoThread::on_io_thread()) {
        log_event(LogLevel::warning, "libfuse could not handle a request", 0);
        return;
    }
    std::array<char, 256> text{};
    std::vsnprintf(text.data(), text.size(), format, arguments);
    std::string_view line(text.data());
    while (!line.empty() && line.back() == '\n') line.remove_suffix(1);
    log_warning("libfuse: {}", line);
}

/// Each I/O thread knows a request by nothing but its `unique`, which the kernel marks when it sends it again
/// (FUSE_UNIQUE_RESEND, bit 63): libfuse answers with the same 64 bits.
Result<void> ask_for_unanswered(int connection) {
    fuse_out_header notice{};
    notice.len = sizeof notice;
    notice.error = kNotifyResend;
    if (::write(connection, &notice, sizeof notice) == static_cast<ssize_t>(sizeof notice)) return {};
    if (errno == EINVAL)
        return Error{Errc::unavailable, 0,
                     "this kernel's FUSE does not send again what a dead process has read",
                     "Linux 6.9 or later is needed"};
    return sys_error("FUSE does not send again what a dead process has read");
}

Result<UniqueFd> duplicate_above(int fd, int above) {
    UniqueFd duplicate(::fcntl(fd, F_DUPFD_CLOEXEC, above + 1));
    if (!duplicate) return sys_error("cannot duplicate the FUSE descriptor");
    return duplicate;
}

}  // namespace

void FuseFile::SessionDeleter::operator()(fuse_session* session) const {
    fuse_session_destroy(session);
}

Result<std::unique_ptr<FuseFile>> FuseFile::serve(Target& target, const FuseFileOptions& options) {
    auto connection = open_fuse_device(options.dev_dir);
    if (!connection) return std::move(connection).error();
    auto file = make(target, options, *connection);
    if (!file) return file;
    connection->reset();
    FuseFile& self = **file;
    // Declared after `file`, so that on failure the superblock goes while the threads still serve it.
    auto mount = mount_fuse_detached(fuse_session_fd(self.session_.get()));
    if (!mount) return std::move(mount).error();
    if (auto started = self.start_threads(options.threads); !started) return std::move(started).error();
    if (auto opened = self.open_handle(mount->get()); !opened) return std::move(opened).error();
    return file;
}

Result<std::unique_ptr<FuseFile>> FuseFile::take_over(Target& target, const FuseFileOptions& options,
                                                      const UniqueFd& connection) {
    auto file = make(target, options, connection);
    if (!file) return file;
    FuseFile& self = **file;
    if (auto initialised = self.replay_init(); !initialised) return std::move(initialised).error();
    // Before a thread reads: what one of them has in hand would come again too.
    if (auto asked = ask_for_unanswered(connection.get()); !asked) return std::move(asked).error();
    if (auto started = self.start_threads(options.threads); !started) return std::move(started).error();
    return file;
}

Result<std::unique_ptr<FuseFile>> FuseFile::make(Target& target, const FuseFileOptions& options,
                                                 const UniqueFd& connection) {
    std::unique_ptr<FuseFile> file(new FuseFile(target, options.file_name));
    auto stop = StopSignal::make();
    if (!stop) return std::move(stop).error();
    file->stop_ = std::move(*stop);
    auto own = duplicate_above(connection.get(), options.fd_above);
    if (!own) return std::move(own).error();
    if (auto made = file->make_session(std::move(*own)); !made) return std::move(made).error();
    return file;
}

FuseFile::~FuseFile() {
    // Closing the last holder of the file system ends the connection and with it the threads; the signal ends
    // them even if somebody else holds on to the file.
    handle_.reset();
    if (stop_) stop_->request();
    for (auto& thread : threads_) thread->join();
    threads_.clear();
}

Result<void> FuseFile::make_session(UniqueFd connection) {
    fuse_set_log_func(&log_from_libfuse);
    std::array<char, 9> program{"vramswap"};
    std::array<char*, 2> argv{program.data(), nullptr};
    fuse_args arguments{1, argv.data(), 0};
    session_.reset(fuse_session_new(&arguments, &kOperations, sizeof kOperations, this));
    fuse_opt_free_args(&arguments);
    if (!session_) return Error{Errc::failed, 0, "libfuse cannot make a session"};
    // This form of the mount point makes libfuse adopt our descriptor and mount nothing.
    if (fuse_session_mount(session_.get(), fmt::format("/dev/fd/{}", connection.get()).c_str()) != 0)
        return Error{Errc::failed, 0, "libfuse does not take our FUSE descriptor"};
    static_cast<void>(connection.release());
    return {};
}

/// The kernel sends INIT once in the life of a connection, and libfuse serves nothing before it has seen one.
Result<void> FuseFile::replay_init() {
    struct {
        fuse_in_header header;
        fuse_init_in init;
    } request{};
    request.header.len = sizeof request;
    request.header.opcode = FUSE_INIT;
    request.header.unique = kReplayedUnique;
    request.init.major = FUSE_KERNEL_VERSION;
    request.init.minor = kReplayedMinor;
    // Without FUSE_MAX_PAGES libfuse would cut down max_write and say so.
    request.init.flags = FUSE_ASYNC_DIO | FUSE_MAX_PAGES;
    fuse_buf buffer{};
    buffer.mem = &request;
    buffer.size = sizeof request;
    fuse_session_process_buf(session_.get(), &buffer);
    // Only a refusal ends the session.
    if (fuse_session_exited(session_.get()) == 0) return {};
    return Error{Errc::failed, 0, "libfuse does not go on with the session of a dead process"};
}

Result<void> FuseFile::start_threads(std::uint32_t count) {
    const IoThread::Shared shared{target_, session_.get(), fuse_session_fd(session_.get()), *stop_};
    // All of them are made before one is started: `threads_` does not change while threads run.
    for (std::uint32_t i = 0; i < count; ++i) {
        auto thread = IoThread::make(shared);
        if (!thread) return std::move(thread).error();
        threads_.push_back(std::move(*thread));
    }
    for (std::uint32_t i = 0; i < count; ++i)
        if (auto started = threads_[i]->start(i); !started) return started;
    return {};
}

Result<void> FuseFile::open_handle(int mount) {
    // Waits until a thread has answered INIT, and sends LOOKUP and OPEN.
    handle_.reset(::openat(mount, name_.c_str(), O_RDWR | O_DIRECT | O_CLOEXEC | O_NOFOLLOW));
    if (!handle_) return sys_error(fmt::format("cannot open {} in our FUSE file system", name_));
    return {};
}

bool FuseFile::can_be_taken_over() const {
    return ask_for_unanswered(fuse_session_fd(session_.get())).has_value();
}

Result<UniqueFd> FuseFile::duplicate_connection() const {
    const int connection = fuse_session_fd(session_.get());
    return duplicate_above(connection, connection);
}

FrontendCounters FuseFile::counters() const {
    FrontendCounters sum;
    for (const auto& thread : threads_) thread->add_counters(sum);
    return sum;
}

}  // namespace vramswap
