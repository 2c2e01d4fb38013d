// The front ends' guide, its code as it stands: every character from here on is theirs, the damaged
// symbols too. guide.test.mjs runs it; nothing here may be mended.

async function startSyncWithProgress(orgId: string) {
  // Start sync
  const startResponse = await fetch(`/api/v1/cliniko/sync-all/${orgId}`, {
    method: 'POST',
    headers: { 'Content-Type': 'application/json' }
  })
  
  if (!startResponse.ok) {
    throw new Error(`Failed to start sync: ${startResponse.status}`)
  }
  
  const result = await startResponse.json()
  console.log('‚úÖ Sync started:', result.message)
  
  // Monitor progress
  return await monitorSyncProgress(orgId)
}

interface SyncProgress {
  status: 'completed' | 'failed' | 'running'
  type: 'full_patients' | 'active_patients'  
  recordsProcessed: number
  recordsSuccess: number
  successRate: number
  startedAt: string
  completedAt?: string
  metadata: {
    patients_found?: number
    patients_stored?: number
    sync_type?: string
    errors?: string[]
  }
}

async function monitorSyncProgress(orgId: string): Promise<SyncProgress> {
  const maxWaitTime = 300000 // 5 minutes
  const pollInterval = 2000   // 2 seconds
  const startTime = Date.now()
  
  while (Date.now() - startTime < maxWaitTime) {
    try {
      const response = await fetch(`/api/v1/cliniko/sync-logs/${orgId}?limit=1`)
      const data = await response.json()
      
      if (data.logs?.length > 0) {
        const latestLog = data.logs[0]
        const progress: SyncProgress = {
          status: latestLog.status,
          type: latestLog.operation_type,
          recordsProcessed: latestLog.records_processed || 0,
          recordsSuccess: latestLog.records_success || 0,
          successRate: latestLog.records_processed > 0 
            ? (latestLog.records_success / latestLog.records_processed) * 100 
            : 0,
          startedAt: latestLog.started_at,
          completedAt: latestLog.completed_at,
          metadata: typeof latestLog.metadata === 'string' 
            ? JSON.parse(latestLog.metadata) 
            : latestLog.metadata || {}
        }
        
        // Update UI with progress
        updateSyncUI(progress)
        
        // Check if completed
        if (progress.status === 'completed') {
          console.log('‚úÖ Sync completed successfully!')
          return progress
        } else if (progress.status === 'failed') {
          console.error('‚ùå Sync failed:', progress.metadata.errors)
          throw new Error(`Sync failed: ${progress.metadata.errors?.join(', ')}`)
        }
      }
      
      // Wait before next poll
      await new Promise(resolve => setTimeout(resolve, pollInterval))
      
    } catch (error) {
      console.error('Error polling sync progress:', error)
      await new Promise(resolve => setTimeout(resolve, pollInterval))
    }
  }
  
  throw new Error('Sync monitoring timeout after 5 minutes')
}

function updateSyncUI(progress: SyncProgress) {
  const progressPercent = progress.recordsProcessed > 0 
    ? (progress.recordsSuccess / progress.recordsProcessed) * 100 
    : 0
  
  // Update progress bar
  document.querySelector('.progress-bar')!.style.width = `${progressPercent}%`
  
  // Update status text
  document.querySelector('.sync-status')!.textContent = 
    `Processing ${progress.recordsSuccess}/${progress.recordsProcessed} patients (${progressPercent.toFixed(1)}%)`
  
  // Update step indicator
  const stepText = getStepText(progress)
  document.querySelector('.current-step')!.textContent = stepText
  
  // Update activity log
  addActivityLogEntry(`${new Date().toLocaleTimeString()}: ${stepText}`)
}

function getStepText(progress: SyncProgress): string {
  const { metadata } = progress
  
  if (progress.status === 'completed') {
    return `‚úÖ Sync completed! ${progress.recordsSuccess} patients updated`
  }
  
  if (metadata.patients_found && metadata.patients_stored !== undefined) {
    return `üíæ Storing patients in database (${metadata.patients_stored}/${metadata.patients_found})`
  }
  
  if (metadata.patients_found) {
    return `üìä Processing ${metadata.patients_found} patients from Cliniko`
  }
  
  return 'üîÑ Syncing in progress...'
}
