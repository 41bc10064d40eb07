package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"time"

	"mongomux/consistency/check"
)

// What snapshot isolation in causal sessions is called there.
const model = "strong-session-snapshot-isolation"

// secondOpinion has transactions judged by another checker as well, which reads histories as Elle does.
func secondOpinion(adya string, h *history) error {
	directory, err := os.MkdirTemp("", "mongomux-consistency-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(directory)
	file := filepath.Join(directory, "history.jsonl")
	if err := writeElle(file, h); err != nil {
		return err
	}
	output, err := exec.Command(adya, "check", "-m", "list-append", "-c", model, file).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w\n%s", err, output)
	}
	return nil
}

type elleEvent struct {
	Index   int    `json:"index"`
	Type    string `json:"type"`
	Process int    `json:"process"`
	Value   []any  `json:"value"`
	at      time.Duration
}

// writeElle writes one event a line. What is left at the end is one more transaction, of a process of its own.
func writeElle(path string, h *history) error {
	txns := slices.Clone(h.Txns)
	last := check.Txn{Client: check.Final, Outcome: check.Done}
	for _, op := range h.Ops {
		last.Steps = append(last.Steps, check.Step{Key: op.Key, Seen: op.Seen})
		last.Call, last.Return = op.Call, op.Return
	}
	processes := map[string]int{}
	var events []elleEvent
	for _, txn := range append(txns, last) {
		if _, known := processes[txn.Client]; !known {
			processes[txn.Client] = len(processes)
		}
		process := processes[txn.Client]
		end := map[check.Outcome]string{check.Done: "ok", check.Refused: "fail", check.Unknown: "info"}[txn.Outcome]
		events = append(events,
			elleEvent{Type: "invoke", Process: process, Value: elleSteps(txn, false), at: txn.Call},
			elleEvent{Type: end, Process: process, Value: elleSteps(txn, txn.Outcome == check.Done), at: txn.Return})
	}
	sort.SliceStable(events, func(i, j int) bool { return events[i].at < events[j].at })
	var lines strings.Builder
	encoder := json.NewEncoder(&lines)
	for i := range events {
		events[i].Index = i
		if err := encoder.Encode(events[i]); err != nil {
			return err
		}
	}
	return os.WriteFile(path, []byte(lines.String()), 0o644)
}

func elleSteps(txn check.Txn, read bool) []any {
	var steps []any
	for _, step := range txn.Steps {
		switch {
		case step.Append != 0:
			steps = append(steps, []any{"append", step.Key, step.Append})
		case read:
			steps = append(steps, []any{"r", step.Key, append([]int64{}, step.Seen...)})
		default:
			steps = append(steps, []any{"r", step.Key, nil})
		}
	}
	return steps
}
