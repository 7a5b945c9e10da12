// SPDX-License-Identifier: MIT
// What processes of different versions tell each other.
#include <gtest/gtest.h>

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

}  // namespace
}  // namespace vramswap
