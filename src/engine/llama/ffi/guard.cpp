// The one C++ file of the daemon: catches what llama.cpp throws.
//
// llama.cpp is C++ behind a C interface, and most of that interface lets exceptions through. One
// that reaches Rust code compiled for C ends the process, and with it every connection. So each
// call that can throw runs inside `autoglmd_guard`, which turns an exception into a message.

#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <new>

namespace {

void copy(const char * text, char * cause, std::size_t room) {
    if (room == 0) {
        return;
    }
    std::strncpy(cause, text, room - 1);
    cause[room - 1] = '\0';
}

void (*report_end)(const char *) = nullptr;

// Runs where an exception finds no handler, such as on a compute thread of OpenMP.
[[noreturn]] void tell_and_abort() {
    const char * text = "a C++ exception was not caught";
    try {
        if (std::current_exception()) {
            std::rethrow_exception(std::current_exception());
        }
    } catch (const std::exception & exception) {
        if (report_end) {
            report_end(exception.what());
        }
        std::abort();
    } catch (...) {
    }
    if (report_end) {
        report_end(text);
    }
    std::abort();
}

} // namespace

// Calls `call(data)`. Returns 0, or 1 with the exception's message in `cause`.
extern "C" int autoglmd_guard(
    void (*call)(void *), void * data, char * cause, std::size_t room) {
    try {
        call(data);
        return 0;
    } catch (const std::bad_alloc &) {
        copy("not enough memory", cause, room);
    } catch (const std::exception & exception) {
        copy(exception.what(), cause, room);
    } catch (...) {
        copy("an exception that says nothing", cause, room);
    }
    return 1;
}

// From now on `report` is told why C++ code ends the process.
extern "C" void autoglmd_report_end(void (*report)(const char *)) {
    report_end = report;
    std::set_terminate(tell_and_abort);
}
