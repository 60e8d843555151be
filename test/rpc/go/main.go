// What test/rpc/go-qemu.test.ts runs: go-qemu's QMP client, unmodified, against the socket that is named.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"time"

	"github.com/digitalocean/go-qemu/qmp"
)

func must(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func main() {
	monitor, err := qmp.NewSocketMonitor("unix", os.Args[1], 5*time.Second)
	must(err)
	must(monitor.Connect())
	defer monitor.Disconnect()
	stream, err := monitor.Events(nil)
	must(err)
	// It reads no reply while an event waits for its reader, and a job's first events come before the reply.
	events := make(chan qmp.Event, 1000)
	go func() {
		for event := range stream {
			events <- event
		}
	}()

	run := func(command string, arguments interface{}) json.RawMessage {
		request, err := json.Marshal(map[string]interface{}{"execute": command, "arguments": arguments})
		must(err)
		raw, err := monitor.Run(request)
		must(err)
		var reply struct{ Return json.RawMessage }
		must(json.Unmarshal(raw, &reply))
		return reply.Return
	}
	concluded := func(job string) {
		for event := range events {
			if event.Event == "JOB_STATUS_CHANGE" && event.Data["id"] == job && event.Data["status"] == "concluded" {
				return
			}
		}
	}
	type object = map[string]interface{}

	file := os.Args[2]
	run("blockdev-create", object{"job-id": "f", "options": object{"driver": "file", "filename": file, "size": 0}})
	concluded("f")
	run("job-dismiss", object{"id": "f"})
	run("blockdev-add", object{"driver": "file", "filename": file, "node-name": "file"})
	run("blockdev-create", object{"job-id": "q", "options": object{"driver": "qcow2", "file": "file", "size": 16 << 20}})
	concluded("q")
	run("job-dismiss", object{"id": "q"})
	run("blockdev-add", object{"driver": "qcow2", "file": "file", "node-name": "disk"})
	fmt.Println(string(run("query-named-block-nodes", object{"flat": true})))
	run("quit", object{})
}
