{{/* What all resources are called. */}}
{{- define "mongomux.name" -}}
{{- if contains "mongomux" .Release.Name }}{{ .Release.Name | trunc 50 | trimSuffix "-" }}{{ else }}{{ printf "%s-mongomux" (.Release.Name | trunc 41 | trimSuffix "-") }}{{ end }}
{{- end }}

{{- define "mongomux.selector" -}}
app.kubernetes.io/name: mongomux
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "mongomux.labels" -}}
{{ include "mongomux.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- define "mongomux.image" -}}
{{- with .Values.image -}}
{{ .repository }}{{ if .digest }}@{{ .digest }}{{ else }}:{{ .tag | default $.Chart.AppVersion }}{{ end }}
{{- end }}
{{- end }}

{{- define "mongomux.upstreamSecret" -}}
{{- with .Values.upstream -}}
{{- if and .existingSecret .uri }}{{ fail "upstream: give either existingSecret or uri, not both" }}{{ end -}}
{{- if not (or .existingSecret .uri) }}{{ fail "upstream: existingSecret (or, for trials, uri) is needed" }}{{ end -}}
{{ .existingSecret | default (printf "%s-upstream" (include "mongomux.name" $)) }}
{{- end }}
{{- end }}

{{/* The configuration file. Keys of the program stand before all tables, so those of the chart come first. */}}
{{- define "mongomux.config" -}}
drain_timeout_ms = {{ mul .Values.drainTimeoutSeconds 1000 }}
{{ .Values.config | trim }}
{{- end }}

{{/* Arguments that sidecar and standalone share. */}}
{{- define "mongomux.args" -}}
- run
- --config=/etc/mongomux/mongomux.toml
- --upstream-file=/run/secrets/mongomux/upstream
- --admin=0.0.0.0:9627
{{- if .Values.adminTokens.existingSecret }}
- --admin-token-file=/run/secrets/mongomux-admin/tokens
{{- else }}
- --admin-probes-only
{{- end }}
- --log={{ .Values.log.level }}
- --log-format={{ .Values.log.format }}
{{- with .Values.extraArgs }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* What sidecar and standalone share of a container. Probes ask for the process, never for MongoDB. */}}
{{- define "mongomux.container" -}}
name: mongomux
image: {{ include "mongomux.image" . }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
{{- with .Values.extraEnv }}
env:
  {{- toYaml . | nindent 2 }}
{{- end }}
startupProbe:
  httpGet: {path: /livez, port: mongomux-admin}
  periodSeconds: 1
  failureThreshold: 30
livenessProbe:
  httpGet: {path: /livez, port: mongomux-admin}
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 3
resources:
  {{- toYaml .Values.resources | nindent 2 }}
securityContext:
  runAsNonRoot: true
  runAsUser: 65532
  runAsGroup: 65532
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
  seccompProfile: {type: RuntimeDefault}
volumeMounts:
  - {name: mongomux-config, mountPath: /etc/mongomux, readOnly: true}
  - {name: mongomux-upstream, mountPath: /run/secrets/mongomux, readOnly: true}
  {{- if .Values.tls.existingSecret }}
  - {name: mongomux-tls, mountPath: /run/secrets/mongomux-tls, readOnly: true}
  {{- end }}
  {{- if .Values.users.existingSecret }}
  - {name: mongomux-users, mountPath: /run/secrets/mongomux-users, readOnly: true}
  {{- end }}
  {{- if .Values.adminTokens.existingSecret }}
  - {name: mongomux-admin, mountPath: /run/secrets/mongomux-admin, readOnly: true}
  {{- end }}
  {{- with .Values.extraVolumeMounts }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}

{{/* Its volumes. The pod needs `fsGroup: 65532`, since secrets are for that group alone. */}}
{{- define "mongomux.volumes" -}}
- name: mongomux-config
  configMap: {name: {{ include "mongomux.name" . }}}
- name: mongomux-upstream
  secret:
    secretName: {{ include "mongomux.upstreamSecret" . }}
    defaultMode: 0440
    items: [{key: {{ .Values.upstream.key }}, path: upstream}]
{{- with .Values.tls.existingSecret }}
- name: mongomux-tls
  secret: {secretName: {{ . }}, defaultMode: 0440}
{{- end }}
{{- with .Values.users.existingSecret }}
- name: mongomux-users
  secret: {secretName: {{ . }}, defaultMode: 0440}
{{- end }}
{{- with .Values.adminTokens.existingSecret }}
- name: mongomux-admin
  secret: {secretName: {{ . }}, defaultMode: 0440}
{{- end }}
{{- with .Values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/*
The proxy as a native sidecar, for `initContainers` of an application's pod. In the chart of the application, which has this one as a
dependency with standalone.enabled=false:

    securityContext: {fsGroup: 65532}
    initContainers:
      {{- include "mongomux.sidecar" .Subcharts.mongomux | nindent 8 }}
    volumes:
      {{- include "mongomux.volumes" .Subcharts.mongomux | nindent 8 }}
*/}}
{{- define "mongomux.sidecar" -}}
- {{ include "mongomux.container" . | nindent 2 | trim }}
  restartPolicy: Always
  ports:
    - {name: mongomux-admin, containerPort: 9627}
  args:
    {{- include "mongomux.args" . | nindent 4 }}
    - --listen=127.0.0.1:27016
{{- end }}
