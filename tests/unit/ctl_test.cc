// SPDX-License-Identifier: MIT
// What processes of different versions tell each other.
#include <gtest/gtest.h>

#include <array>
#include <string>

#include "ctl/control_request.h"
#include "ctl/messages.h"

namespace vramswap {
namespace {

TEST(Messages, AStatusComesBackAsItWas) {
    DeviceStatus status;
    status.name = "t0";
    status.state = "armed";
    status.mode = "turbo";
    status.size = mib(64);
    status.pages_read = 5;
    const auto read = parse_device_status(to_json(status));
    ASSERT_TRUE(read) << read.error().text();
    EXPECT_EQ(to_json(*read), to_json(status));
}

TEST(Messages, AStatusOfAnotherVersionIsRead) {
    const auto read = parse_device_status(R"({"name": "t0", "device": "/dev/loop1", "of_tomorrow": 1})");
    ASSERT_TRUE(read) << read.error().text();
    EXPECT_EQ(read->device, "/dev/loop1") << "or `down` would not know what to swap off";
    EXPECT_EQ(read->mode, "");
    EXPECT_EQ(read->size, Bytes{0});
}

TEST(Messages, AWorkerThatKnowsOneGpuHasOne) {
    const auto old =
        parse_device_status(R"({"name": "t0", "gpu": "cuda:0", "vram_bytes": 5, "gpu_total_bytes": 9})");
    ASSERT_TRUE(old);
    ASSERT_EQ(old->gpus.size(), 1u);
    EXPECT_EQ(old->gpus[0].selector, "cuda:0");
    EXPECT_EQ(old->gpus[0].vram, Bytes{5});
    EXPECT_EQ(old->gpus[0].total, Bytes{9});
    const auto later = parse_device_status(
        R"({"name": "t0", "gpu": "a,b", "gpus": [{"name": "A", "selector": "a"}, {"name": "B", "new": 1}]})");
    ASSERT_TRUE(later);
    EXPECT_EQ(later->gpus.size(), 2u);
}

TEST(Messages, WhatIsNoStatusIsNotTakenForOne) {
    for (const char* text : {"", "{", "[]", "{}", R"({"device": "/dev/loop1"})", R"({"name": 1})",
                             R"({"name": "t0", "size_bytes": "many"})"})
        EXPECT_FALSE(parse_device_status(text)) << text;
}

TEST(Messages, AConfigurationIsWhole) {
    DeviceConfig config;
    config.name = "t0";
    std::string text = to_json(config);
    EXPECT_TRUE(parse_device_config(text));
    text.replace(text.find("\"mode\""), 6, "\"edom\"");
    EXPECT_FALSE(parse_device_config(text));
}

// --- requests ---

using Op = ControlRequest::Op;

TEST(Requests, ComeBackAsTheyWere) {
    const std::array requests{
        ControlRequest{Op::status},          ControlRequest{Op::stop},
        ControlRequest{Op::resize},          ControlRequest{Op::resize, Bytes{0}},
        ControlRequest{Op::resize, gib(4)},  ControlRequest{Op::yield},
        ControlRequest{Op::yield, mib(1)},   ControlRequest{Op::yield, Bytes{0}, 4711},
        ControlRequest{Op::yield, {}, 4711}, ControlRequest{Op::yield, kRequestVramMax, kPidMax}};
    for (const ControlRequest& request : requests) {
        const std::string text = to_json(request);
        const auto read = parse_control_request(text);
        ASSERT_TRUE(read) << text << ": " << read.error().text();
        EXPECT_EQ(*read, request) << text;
    }
}

TEST(Requests, AreWrittenAsOtherVersionsReadThem) {
    EXPECT_EQ(to_json(ControlRequest{}), R"({"op":"status"})");
    EXPECT_EQ(to_json(ControlRequest{Op::stop}), R"({"op":"stop"})");
    EXPECT_EQ(to_json(ControlRequest{Op::resize, mib(1)}), R"({"bytes":1048576,"op":"resize"})");
    EXPECT_EQ(to_json(ControlRequest{Op::yield, {}, 5}), R"({"bytes":null,"op":"yield","pid":5})");
    EXPECT_EQ(parse_control_request(R"({"op":"yield","bytes":0})").value(),
              (ControlRequest{Op::yield, Bytes{0}, 0}));
}

TEST(Requests, NonsenseIsAUsageError) {
    for (const char* text : {"",
                             "{",
                             "null",
                             "[]",
                             "7",
                             "\"status\"",
                             "{}",
                             R"({"op":7})",
                             R"({"op":null})",
                             R"({"op":"levitate"})",
                             R"({"op":"STATUS"})",
                             R"({"op":"status","bytes":1})",
                             R"({"op":"stop","pid":1})",
                             R"({"op":"resize"})",
                             R"({"op":"resize","bytes":-1})",
                             R"({"op":"resize","bytes":1.5})",
                             R"({"op":"resize","bytes":"1G"})",
                             R"({"op":"resize","bytes":true})",
                             R"({"op":"resize","bytes":[1]})",
                             R"({"op":"resize","bytes":1,"pid":1})",
                             R"({"op":"resize","bytes":1125899906842625})",
                             R"({"op":"resize","bytes":18446744073709551616})",
                             R"({"op":"yield","pid":1})",
                             R"({"op":"yield","bytes":0,"pid":-1})",
                             R"({"op":"yield","bytes":0,"pid":4194305})",
                             R"({"op":"yield","bytes":0,"pid":null})",
                             R"({"op":"yield","bytes":0,"of_tomorrow":1})"}) {
        const auto read = parse_control_request(text);
        ASSERT_FALSE(read) << text;
        EXPECT_EQ(read.error().code, Errc::usage) << text;
        EXPECT_FALSE(read.error().hint.empty()) << text;
    }
}

TEST(Requests, WhatIsRepeatedCanAlwaysBeAnswered) {
    EXPECT_EQ(parse_control_request(R"({"op":"levitate"})").error().message, "unknown request 'levitate'");
    for (const std::string& op : {std::string(5000, 'x'), std::string("\xc3\xa4"), std::string("a\\nb")}) {
        const auto read = parse_control_request(R"({"op":")" + op + R"("})");
        ASSERT_FALSE(read);
        EXPECT_EQ(read.error().message, "unknown request") << op;
        EXPECT_TRUE(is_error_json(error_json(read.error())));
    }
    EXPECT_FALSE(parse_control_request("{\"op\":\"\xff\"}"));
    EXPECT_FALSE(parse_control_request(std::string(60'000, '[')));
}

}  // namespace
}  // namespace vramswap
